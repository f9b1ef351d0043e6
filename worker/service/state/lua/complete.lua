-- A stage succeeded: records its result and queues the next one, or ends the job.
-- Arguments: job_id, stage, token, artifacts, facts, seal (of worker/service/state/seal.py), message. Answers {next, message} | {finished, state} | {lost}.
local id, stage = a.job_id, a.stage
ask(job_key(id), {'plan', 'labels', 'cancel_requested', 'state', 'host'})
if read(id, stage, 'token') ~= a.token then
  if read(id, stage, 'last_token') ~= a.token or read(id, stage, 'state') ~= 'succeeded' then return {'lost'} end
  -- The answer to the first call was lost; say it again.
  local open = first_open_stage(id)
  if finished(job_get(id, 'state')) or not open then return {'finished', job_get(id, 'state')} end
  return {'next', message_for(id, open)}
end
write(id, stage, {state = 'succeeded', artifacts = a.artifacts, facts = a.facts, finished_at = ms(now), token = '',
  last_token = a.token, error = '', not_before = '', previous = '', previous_facts = '', previous_seal = '', seal = a.seal})
note_attempt_end(id, stage, 'succeeded', '')
release(id, stage)
event(id, {kind = 'Command success', stage = stage, attempt = number(id, stage, 'attempt'), message = a.message})
local open = first_open_stage(id)
if not open then
  finish(id, 'succeeded', '', 'info', 'Job succeeded')
  return {'finished', 'succeeded'}
end
if job_get(id, 'cancel_requested') == '1' then
  cancel_job(id)
  return {'finished', 'cancelled'}
end
enqueue(id, open, 0)
return {'next', message_for(id, open)}
