-- Sets the cap of a label (`team`), or of one of its values (`team=red`), for all workers at once.
-- Arguments: name, limit (a number as text, 'none', or '' for what workers are told at their start), by, most (entries).
-- Answers {ok, limit before or ''} | {full}.
local before = redis.call('HGET', key('limits'), a.name)
if a.limit == '' then
  redis.call('HDEL', key('limits'), a.name)
else
  if not before and redis.call('HLEN', key('limits')) >= a.most then return {'full'} end
  redis.call('HSET', key('limits'), a.name, a.limit)
end
audit(a.by, 'limit', a.name, a.limit)
-- Whoever waits for a place of this label asks again: those that still have none are held back again.
for _, m in ipairs(redis.call('ZRANGE', key('held:label_limit'), 0, 9999)) do
  local id, stage = split(m)
  local pair = id and read(id, stage, 'held_for') or ''
  if pair == a.name or string.sub(pair, 1, #a.name + 1) == a.name .. '=' then
    redis.call('ZREM', key('waiting:' .. pair), m)
    let_go(m)
  end
end
return {'ok', before or ''}
