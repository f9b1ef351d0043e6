-- A host is gone: what waited for it goes to any worker, which makes again what it cannot reach.
-- Arguments: host, seen (its entry, as the caller saw it stand still). Answers {gone, messages} | {alive}.
if redis.call('ZSCORE', key('hosts'), a.host) ~= a.seen then return {'alive'} end
redis.call('ZREM', key('hosts'), a.host)
local found = {}
for _, m in ipairs(redis.call('SMEMBERS', key('pinned:' .. a.host))) do
  local id, stage = split(m)
  alone(function()
    if not (id and queued(id, stage)) then return end
    event(id, {level = 'warning', stage = stage, message = 'Host ' .. a.host .. ' is gone; the stage moves on'})
    local delay = math.max(0, (tonumber(read(id, stage, 'not_before')) or 0) - now)
    enqueue(id, stage, delay)
    if delay == 0 then found[#found + 1] = message_for(id, stage) end
  end)
end
redis.call('DEL', key('pinned:' .. a.host))
-- Messages that nobody takes any more; names as those of api_client/ledger/messages.py.
local queue = key('broker:packaging.host.' .. a.host)
redis.call('DEL', queue)
for step = 1, 9 do redis.call('DEL', queue .. string.char(6, 22) .. step) end
return {'gone', found}
