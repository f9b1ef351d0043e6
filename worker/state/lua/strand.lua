-- A host is gone: what waited for it goes to any worker, which makes again what it cannot reach.
-- Arguments: host, age_ms. Answers a list of messages.
local seen = tonumber(redis.call('ZSCORE', key('hosts'), a.host))
if seen and seen > now - a.age_ms then return {} end
redis.call('ZREM', key('hosts'), a.host)
local found = {}
for _, m in ipairs(redis.call('SMEMBERS', key('pinned:' .. a.host))) do
  local id, stage = string.match(m, '^(.-)|(.*)$')
  if read(id, stage, 'state') == 'queued' then
    event(id, {level = 'warning', stage = stage, message = 'Host ' .. a.host .. ' is gone; the stage moves on'})
    local delay = math.max(0, (tonumber(read(id, stage, 'not_before')) or 0) - now)
    enqueue(id, stage, delay)
    if delay == 0 then found[#found + 1] = message_for(id, stage) end
  end
end
redis.call('DEL', key('pinned:' .. a.host))
return found
