-- Takes the lease of a queued stage: a new attempt, the only one that may write. Repeated with the same token, it answers
-- the same again while the attempt holds the stage.
-- Arguments: job_id, stage, attempt, token, worker, host, pin (host's scratch is its own), lease_ms, limits,
--   schema_version, chosen (whether the caller was told that it is this one's turn).
-- Answers {begun, previous_host, check} | {ignored, reason} | {capped} | {paused} | {instead, message}.
local id, stage = a.job_id, a.stage
ask(job_key(id), {'state', 'schema_version', 'labels', 'plan', 'host', 'hosts', 'check_artifacts', 'started_at'})
ask_stages(id, {stage}, {'state', 'token', 'attempt', 'not_before', 'queue', 'pinned', 'held', 'started_at'})
local state = job_get(id, 'state')
if state == '' then return {'ignored', 'the job is gone'} end
-- A message for a new job wakes a worker, and whose turn it is decides which job it begins; so a message of one that was
-- begun in another's place still begins one. What is held back, and has left its line, is not passed over for others.
local waits_apart = queued(id, stage) and read(id, stage, 'line') == ''
if not a.chosen and stage == plan_of(id)[1] and not waits_apart and read(id, stage, 'token') ~= a.token
  and redis.call('HEXISTS', key('fairness'), 'label') == 1 then
  local turn = next_in_turn(job_get(id, 'priority'))
  if turn and turn ~= member(id, stage) then return {'instead', message_for(split(turn))} end
end
local version = tonumber(job_get(id, 'schema_version')) or 1
if version > a.schema_version then
  if queued(id, stage) then
    leave_line(id, stage)
    hold(id, stage, 'newer_worker', ms(version))
  end
  return {'ignored', 'written by a newer version'}
end
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
-- A paused queue or host: workers take no messages then; this one was on its way when it was paused.
local queue_pause, host_pause = 'queue:' .. read(id, stage, 'queue'), 'host:' .. a.host
local pauses = redis.call('HMGET', key('paused'), queue_pause, host_pause)
if pauses[1] or pauses[2] then
  if not pauses[1] and read(id, stage, 'pinned') == '' then
    redis.call('ZREM', key('sent'), m)
    leave_line(id, stage)
    redis.call('ZADD', key('wake'), now + 1000, m) -- back to the queue, for a host that is not paused
    return {'paused'}
  end
  hold_back(id, stage)
  hold(id, stage, 'paused', pauses[1] and queue_pause or host_pause)
  redis.call('ZADD', key('sent'), now, m)
  return {'paused'}
end

-- Whether a place under a cap is free. Where none seems to be, places of stages whose job has vanished do not count.
local function has_room(pair, limit)
  local running = key('running:' .. pair)
  if redis.call('SCARD', running) < limit then return true end
  for _, other in ipairs(redis.call('SMEMBERS', running)) do
    if not redis.call('ZSCORE', key('leases'), other) then redis.call('SREM', running, other) end
  end
  return redis.call('SCARD', running) < limit
end

-- The cap of a label: what was set while the service runs, of this value before all of them, else the worker's setting.
local function limit_of(label, pair)
  local set = redis.call('HMGET', key('limits'), pair, label)
  local text = set[1] or set[2]
  if text then return tonumber(text) end -- 'none' is no number
  return a.limits[label]
end

local open, full, full_limit = {}, nil, nil
for label, value in pairs(labels_of(id)) do
  local pair = label .. '=' .. value
  local limit = limit_of(label, pair)
  if limit and has_room(pair, limit) then open[#open + 1] = pair elseif limit then full, full_limit = pair, limit end
end
if full then
  -- Lower scores go first: more urgent, then older.
  local rank = (9 - tonumber(job_get(id, 'priority'))) * 1e13 + tonumber(job_get(id, 'created_at'))
  redis.call('ZADD', key('waiting:' .. full), rank, m)
  redis.call('ZADD', key('sent'), now, m)
  hold_back(id, stage) -- Another worker would not help it.
  hold(id, stage, 'label_limit', full, ms(full_limit))
  for _, pair in ipairs(open) do wake_next(pair) end -- It was perhaps woken for a place that it cannot take.
  return {'capped'}
end
take_turn(id, stage)
dequeue(id, stage)
for _, pair in ipairs(open) do redis.call('SADD', key('running:' .. pair), m) end
redis.call('ZADD', key('leases'), now + a.lease_ms, m)
local previous, check = job_get(id, 'host'), job_get(id, 'check_artifacts')
visit(id, a.host)
if a.pin and previous ~= a.host then job_set(id, 'host', a.host) end
if check ~= '0' then job_set(id, 'check_artifacts', '0') end
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
