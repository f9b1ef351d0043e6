-- Lists queued stages whose message was sent long ago, and counts the time afresh for them.
-- Arguments: age_ms, limit. Answers a list of messages; the caller sends those that no longer wait in their queue.
local found = {}
for _, m in ipairs(redis.call('ZRANGE', key('sent'), '-inf', now - a.age_ms, 'BYSCORE', 'LIMIT', 0, a.limit)) do
  local id, stage = split(m)
  local sent = alone(function()
    if not (id and queued(id, stage)) then return false end
    found[#found + 1] = message_for(id, stage)
    return true
  end)
  if sent then redis.call('ZADD', key('sent'), now, m) else redis.call('ZREM', key('sent'), m) end
end
return found
