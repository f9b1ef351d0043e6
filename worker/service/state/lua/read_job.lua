-- Reads a job's record as a whole, unless it is larger than any that the service writes.
-- Arguments: job_id, max_bytes. Answers {ok, job, stages, attempts} (hashes as lists of fields and values) | {missing} |
--   {large, bytes}.
if redis.call('EXISTS', job_key(a.job_id)) == 0 then return {'missing'} end
local bytes = 0
for _, name in ipairs({job_key(a.job_id), stages_key(a.job_id), attempts_key(a.job_id)}) do
  bytes = bytes + (redis.call('MEMORY', 'USAGE', name, 'SAMPLES', 0) or 0) -- counts every element
end
if bytes > a.max_bytes then return {'large', ms(bytes)} end
local attempts = redis.call('LRANGE', attempts_key(a.job_id), 0, -1)
return {'ok', redis.call('HGETALL', job_key(a.job_id)), redis.call('HGETALL', stages_key(a.job_id)), attempts}
