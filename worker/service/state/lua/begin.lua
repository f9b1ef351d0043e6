-- Takes the lease of a queued stage: a new attempt, the only one that may write. Repeated with the same token, it answers
-- the same again while the attempt holds the stage.
-- Arguments: job_id, stage, attempt, token, worker, host, pin (host's scratch is its own), lease_ms, limits,
--   schema_version. Answers {begun, previous_host, check} | {ignored, reason} | {capped}.
local id, stage = a.job_id, a.stage
local state = job_get(id, 'state')
if state == '' then return {'ignored', 'the job is gone'} end
if (tonumber(job_get(id, 'schema_version')) or 1) > a.schema_version then return {'ignored', 'written by a newer version'} end
if finished(state) then return {'ignored', 'the job is ' .. state} end
if read(id, stage, 'state') == 'running' and read(id, stage, 'token') == a.token then
  redis.call('ZADD', key('leases'), now + a.lease_ms, member(id, stage))
  return {'begun', read(id, stage, 'came_from'), read(id, stage, 'check')}
end
if read(id, stage, 'state') ~= 'queued' then return {'ignored', 'the stage is ' .. read(id, stage, 'state')} end
if number(id, stage, 'attempt') + 1 ~= a.attempt then return {'ignored', 'another attempt is due'} end
local due = tonumber(read(id, stage, 'not_before'))
if due and due > now and redis.call('ZSCORE', key('wake'), member(id, stage)) then return {'ignored', 'not due yet'} end
local m = member(id, stage)
-- Whether a place under a cap is free. Where none seems to be, places of stages whose job has vanished do not count.
local function has_room(pair, limit)
  local running = key('running:' .. pair)
  if redis.call('SCARD', running) < limit then return true end
  for _, other in ipairs(redis.call('SMEMBERS', running)) do
    if not redis.call('ZSCORE', key('leases'), other) then redis.call('SREM', running, other) end
  end
  return redis.call('SCARD', running) < limit
end

local open, full = {}, nil
for label, value in pairs(labels_of(id)) do
  local limit, pair = a.limits[label], label .. '=' .. value
  if limit and has_room(pair, limit) then open[#open + 1] = pair elseif limit then full = pair end
end
if full then
  -- Lower scores go first: more urgent, then older.
  local rank = (9 - tonumber(job_get(id, 'priority'))) * 1e13 + tonumber(job_get(id, 'created_at'))
  redis.call('ZADD', key('waiting:' .. full), rank, m)
  redis.call('ZADD', key('sent'), now, m)
  hold_back(id, stage) -- Another worker would not help it.
  for _, pair in ipairs(open) do wake_next(pair) end -- It was perhaps woken for a place that it cannot take.
  return {'capped'}
end
dequeue(id, stage)
for _, pair in ipairs(open) do redis.call('SADD', key('running:' .. pair), m) end
redis.call('ZADD', key('leases'), now + a.lease_ms, m)
local previous, check = job_get(id, 'host'), job_get(id, 'check_artifacts')
visit(id, a.host)
if a.pin then job_set(id, 'host', a.host) end
job_set(id, 'check_artifacts', '0')
if job_get(id, 'started_at') == '' then job_set(id, 'started_at', ms(now)) end
set_job_state(id, 'running')
local values = {state = 'running', attempt = tostring(a.attempt), token = a.token, worker = a.worker, progress = '', error = '',
  came_from = previous, check = check, due_since = ''}
if read(id, stage, 'started_at') == '' then values.started_at = ms(now) end
write(id, stage, values)
note_attempt(id, {stage = stage, number = a.attempt, worker = a.worker, started_at = now})
event(id, {stage = stage, attempt = a.attempt, message = 'Attempt ' .. a.attempt .. ' started',
  fields = {worker = a.worker, host = a.host}})
return {'begun', previous, check}
