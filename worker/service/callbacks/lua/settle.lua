-- Records what came of a try, unless someone else has taken the announcement since.
-- Arguments: id, number, claim, delay_ms (below 0: it is settled), level, message, fields. Answers {ok} | {lost}.
local m = a.id .. '|' .. a.number
if redis.call('ZSCORE', key('callbacks'), m) ~= a.claim then return {'lost'} end
if a.delay_ms < 0 then
  redis.call('ZREM', key('callbacks'), m)
else
  redis.call('ZADD', key('callbacks'), now + a.delay_ms, m)
end
if job_get(a.id, 'state') ~= '' then
  local became = a.delay_ms >= 0 and 'retrying' or a.level == 'info' and 'delivered' or 'given_up'
  job_set(a.id, 'callback_state', became)
  event(a.id, {level = a.level, message = a.message, fields = a.fields})
end
return {'ok'}
