-- Chooses the label whose values take turns, or the weight of one of its values.
-- Arguments: name ('label', or '=VALUE'), value (a label or a weight as text; '' takes it away), by, most (entries).
-- Answers {ok} | {full}.
if a.value == '' then
  redis.call('HDEL', key('fairness'), a.name)
else
  local new = redis.call('HEXISTS', key('fairness'), a.name) == 0
  if new and redis.call('HLEN', key('fairness')) >= a.most then return {'full'} end
  redis.call('HSET', key('fairness'), a.name, a.value)
end
audit(a.by, 'fairness', a.name, a.value)
if a.name == 'label' then -- those that wait already join the lines of the new label
  for _, m in ipairs(redis.call('ZRANGE', key('due:packaging.io'), 0, 99999)) do
    local id, stage = split(m)
    if id and queued(id, stage) and redis.call('ZSCORE', key('sent'), m) then
      join_line(id, stage, redis.call('ZSCORE', key('due:packaging.io'), m))
    end
  end
end
return {'ok'}
