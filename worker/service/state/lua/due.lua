-- Takes queued stages whose delay is over; each is given to one caller, who sends its message.
-- Arguments: limit. Answers a list of messages.
local found = {}
for _, m in ipairs(redis.call('ZRANGE', key('wake'), '-inf', now, 'BYSCORE', 'LIMIT', 0, a.limit)) do
  local id, stage = split(m)
  alone(function()
    if id and queued(id, stage) then
      local message = message_for(id, stage)
      redis.call('ZADD', key('sent'), now, m)
      join_line(id, stage, tonumber(redis.call('ZSCORE', due_key(id, stage), m)) or now)
      found[#found + 1] = message
    end
  end)
  redis.call('ZREM', key('wake'), m)
end
return found
