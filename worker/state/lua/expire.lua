-- Removes every trace of jobs whose time is over. Arguments: limit. Answers {ids}.
local found = {}
for _, id in ipairs(redis.call('ZRANGE', key('expiry'), '-inf', now, 'BYSCORE', 'LIMIT', 0, a.limit)) do
  local state = job_get(id, 'state')
  if state == '' or finished(state) then
    local labels = job_get(id, 'labels')
    for label, value in pairs(labels ~= '' and cjson.decode(labels) or {}) do
      local index = key('jobs:label:' .. label .. '=' .. value)
      redis.call('ZREM', index, id)
    end
    local idempotency = job_get(id, 'idempotency_key')
    if idempotency ~= '' then
      local known = redis.call('GET', key('idempotency:' .. idempotency))
      if known and cjson.decode(known).id == id then redis.call('DEL', key('idempotency:' .. idempotency)) end
    end
    redis.call('ZREM', key('jobs'), id)
    -- Of a job whose hash has gone before, neither state nor template is known.
    local templates = state ~= '' and {job_get(id, 'template')} or redis.call('SMEMBERS', key('jobs:templates'))
    for _, name in ipairs({'queued', 'running', 'succeeded', 'failed', 'cancelled'}) do
      redis.call('ZREM', key('jobs:state:' .. name), id)
      for _, template in ipairs(templates) do redis.call('SREM', template_index(name, template), id) end
    end
    for number = 1, tonumber(job_get(id, 'callbacks')) or 0 do
      redis.call('ZREM', key('callbacks'), id .. '|' .. ms(number))
    end
    local host = job_get(id, 'host')
    if host ~= '' and not redis.call('ZSCORE', key('hosts'), host) then
      redis.call('HDEL', key('scratch:' .. host), id) -- a living host removes the directory and the entry itself
    end
    redis.call('DEL', unpack(job_keys(id)))
    found[#found + 1] = id
  end
  redis.call('ZREM', key('expiry'), id)
end
return {found}
