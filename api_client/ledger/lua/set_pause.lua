-- Pauses a queue or a host, or lets it go on. What runs goes on; nothing new begins.
-- Arguments: name (`queue:NAME` or `host:NAME`), pause (whether), by, most (entries).
-- Answers {ok, whether it was paused before: '1' or '0'} | {full}.
local before = redis.call('HEXISTS', key('paused'), a.name)
if a.pause then
  if before == 0 then
    if redis.call('HLEN', key('paused')) >= a.most then return {'full'} end
    redis.call('HSET', key('paused'), a.name, cjson.encode({by = a.by, at = now}))
    audit(a.by, 'pause', a.name, '')
  end
  return {'ok', tostring(before)}
end
if before == 1 then
  redis.call('HDEL', key('paused'), a.name)
  audit(a.by, 'resume', a.name, '')
end
-- Those whose message was on its way when the pause began. Messages in the queue are still there.
for _, m in ipairs(redis.call('ZRANGE', key('held:paused'), 0, 9999)) do
  local id, stage = split(m)
  if not id or read(id, stage, 'held_for') == a.name then
    redis.call('ZREM', key('held:paused'), m)
    let_go(m)
  end
end
return {'ok', tostring(before)}
