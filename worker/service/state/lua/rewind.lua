-- An attempt found that files of earlier stages are not there: those stages run again, no retry is spent.
-- Arguments: job_id, stage, token, reset (stage names), message. Answers {queued, message} | {finished, state} | {lost}.
local id, stage = a.job_id, a.stage
if read(id, stage, 'token') ~= a.token or a.token == '' then
  if a.token == '' or read(id, stage, 'last_token') ~= a.token then return {'lost'} end
  -- The answer to the first call was lost; say it again.
  if job_get(id, 'state') == 'cancelled' and read(id, stage, 'state') == 'cancelled' then return {'finished', 'cancelled'} end
  local open = first_open_stage(id)
  if not open or not queued(id, open) then return {'lost'} end
  return {'queued', message_for(id, open)}
end
note_attempt_end(id, stage, 'handed_back', '')
release(id, stage)
event(id, {level = 'warning', stage = stage, attempt = number(id, stage, 'attempt'), message = a.message,
  fields = {reset = a.reset}})
write(id, stage, {state = 'pending', token = '', last_token = a.token, progress = ''})
for _, name in ipairs(a.reset) do
  local made = read(id, name, 'artifacts')
  if made ~= '' and made ~= '[]' and made ~= '{}' then -- what is still whole need not be made again
    write(id, name, {previous = made, previous_facts = read(id, name, 'facts'), previous_seal = read(id, name, 'seal')})
  end
  write(id, name, {state = 'pending', artifacts = '', facts = '', finished_at = '', progress = '', retries = '0'})
end
if job_get(id, 'cancel_requested') == '1' then
  cancel_job(id)
  return {'finished', 'cancelled'}
end
redis.call('HINCRBY', job_key(id), 'rewinds', 1)
local open = first_open_stage(id)
enqueue(id, open, 0)
return {'queued', message_for(id, open)}
