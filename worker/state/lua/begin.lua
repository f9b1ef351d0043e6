-- Takes the lease of a queued stage: a new attempt, the only one that may write.
-- Arguments: job_id, stage, attempt, token, worker, host, pin (host's scratch is its own), lease_ms, limits,
--   schema_version. Answers {begun, previous_host, check} | {ignored, reason} | {capped}.
local id, stage = a.job_id, a.stage
local state = job_get(id, 'state')
if state == '' then return {'ignored', 'the job is gone'} end
if (tonumber(job_get(id, 'schema_version')) or 1) > a.schema_version then return {'ignored', 'written by a newer version'} end
if finished(state) then return {'ignored', 'the job is ' .. state} end
if read(id, stage, 'state') ~= 'queued' then return {'ignored', 'the stage is ' .. read(id, stage, 'state')} end
if number(id, stage, 'attempt') + 1 ~= a.attempt then return {'ignored', 'another attempt is due'} end
local due = tonumber(read(id, stage, 'not_before'))
if due and due > now and redis.call('ZSCORE', key('wake'), member(id, stage)) then return {'ignored', 'not due yet'} end
local m = member(id, stage)
local counted = {}
for label, value in pairs(labels_of(id)) do
  if a.limits[label] then
    local pair = label .. '=' .. value
    if redis.call('SCARD', key('running:' .. pair)) >= a.limits[label] then
      -- Lower scores go first: more urgent, then older.
      local rank = (9 - tonumber(job_get(id, 'priority'))) * 1e13 + tonumber(job_get(id, 'created_at'))
      redis.call('ZADD', key('waiting:' .. pair), rank, m)
      redis.call('ZADD', key('sent'), now, m)
      return {'capped'}
    end
    counted[#counted + 1] = pair
  end
end
dequeue(id, stage)
for _, pair in ipairs(counted) do redis.call('SADD', key('running:' .. pair), m) end
redis.call('ZADD', key('leases'), now + a.lease_ms, m)
local previous, check = job_get(id, 'host'), job_get(id, 'check_artifacts')
if a.pin then job_set(id, 'host', a.host) end
job_set(id, 'check_artifacts', '0')
if job_get(id, 'started_at') == '' then job_set(id, 'started_at', ms(now)) end
set_job_state(id, 'running')
local values = {state = 'running', attempt = tostring(a.attempt), token = a.token, worker = a.worker, progress = '', error = ''}
if read(id, stage, 'started_at') == '' then values.started_at = ms(now) end
write(id, stage, values)
redis.call('RPUSH', attempts_key(id),
  cjson.encode({stage = stage, number = a.attempt, worker = a.worker, started_at = now}))
event(id, {stage = stage, attempt = a.attempt, message = 'Attempt ' .. a.attempt .. ' started',
  fields = {worker = a.worker, host = a.host}})
return {'begun', previous, check}
