-- An attempt ends without success: the stage is queued again, or fails, or is cancelled with its job.
-- Arguments: job_id, stage, token, outcome, failure (JSON text or ''), next (queue | fail | cancel), delay_ms, retries,
--   crashes (new counts), level, message, lease_until (of the lease that a reaper saw run out, '' from the holder).
-- Answers {queued, message} | {delayed} | {finished, state} | {lost}.
local id, stage = a.job_id, a.stage
if read(id, stage, 'token') ~= a.token or a.token == '' then
  if a.token == '' or read(id, stage, 'last_token') ~= a.token then return {'lost'} end
  if finished(job_get(id, 'state')) then return {'finished', job_get(id, 'state')} end
  if read(id, stage, 'state') == 'queued' then return {'queued', message_for(id, stage)} end
  return {'lost'}
end
if a.lease_until ~= '' and redis.call('ZSCORE', key('leases'), member(id, stage)) ~= a.lease_until then return {'lost'} end
local cancelled = a.next == 'cancel' or (a.next == 'queue' and job_get(id, 'cancel_requested') == '1')
note_attempt_end(id, stage, cancelled and 'cancelled' or a.outcome, a.failure)
release(id, stage)
write(id, stage, {token = '', last_token = a.token, retries = a.retries, crashes = a.crashes, progress = ''})
event(id, {level = a.level, stage = stage, attempt = number(id, stage, 'attempt'), message = a.message,
  fields = {outcome = a.outcome, error = a.failure ~= '' and cjson.decode(a.failure) or nil}})
if cancelled then
  cancel_job(id)
  return {'finished', 'cancelled'}
end
if a.next == 'fail' then
  -- The failure's own place is the attempt (note_attempt_end above). Clients and workers of 0.1.0 look for it in the
  -- hashes of stage and job, and a log is read without its job: those three are copies.
  write(id, stage, {state = 'failed', finished_at = ms(now), error = a.failure})
  finish(id, 'failed', a.failure, 'error', 'Job failed in ' .. stage)
  return {'finished', 'failed'}
end
enqueue(id, stage, a.delay_ms)
if a.delay_ms > 0 then return {'delayed'} end
return {'queued', message_for(id, stage)}
