-- Removes every trace of jobs whose time is over. Arguments: limit. Answers {ids}.
local found = {}
for _, id in ipairs(redis.call('ZRANGE', key('expiry'), '-inf', now, 'BYSCORE', 'LIMIT', 0, a.limit)) do
  local state = alone(job_get, id, 'state') or ''
  if state == '' or finished(state) then
    alone(function()
      for label, value in pairs(labels_of(id)) do redis.call('ZREM', key('jobs:label:' .. label .. '=' .. value), id) end
    end)
    alone(function()
      local idempotency = idempotency_key(id)
      if idempotency then redis.call('DEL', idempotency) end
    end)
    redis.call('ZREM', key('jobs'), id)
    alone(function()
      -- Of a job whose hash has gone before, neither state nor template is known.
      local templates = state ~= '' and {job_get(id, 'template')} or redis.call('SMEMBERS', key('jobs:templates'))
      for _, name in ipairs({'queued', 'running', 'succeeded', 'failed', 'cancelled'}) do
        redis.call('ZREM', key('jobs:state:' .. name), id)
        for _, template in ipairs(templates) do redis.call('SREM', template_index(name, template), id) end
      end
      for number = 1, tonumber(job_get(id, 'callbacks')) or 0 do
        redis.call('ZREM', key('callbacks'), id .. '|' .. ms(number))
      end
      for host in string.gmatch(job_get(id, 'hosts') .. ' ' .. job_get(id, 'host'), '%S+') do
        if not redis.call('ZSCORE', key('hosts'), host) then
          redis.call('HDEL', key('scratch:' .. host), id) -- a living host removes the directory and the entry itself
        end
      end
    end)
    redis.call('DEL', unpack(job_keys(id)))
    found[#found + 1] = id
  end
  redis.call('ZREM', key('expiry'), id)
end
return {found}
