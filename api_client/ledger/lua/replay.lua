-- Opens a finished job again from a stage; '' means the first that did not succeed, or all of them.
-- Attempt numbers go on counting and the log is kept.
-- Arguments: id, from_stage, nonce. Answers {queued, message} | {missing} | {running, state} | {no_stage}.
local state = job_get(a.id, 'state')
if state == '' then return {'missing'} end
local plan = plan_of(a.id)
if job_get(a.id, 'replay_nonce') == a.nonce then -- the answer to the first call was lost; the job may have ended since
  return {'queued', message_for(a.id, first_open_stage(a.id) or plan[1])}
end
if not finished(state) then return {'running', state} end
local from = a.from_stage ~= '' and a.from_stage or first_open_stage(a.id) or plan[1]
if not string.find(',' .. table.concat(plan, ',') .. ',', ',' .. from .. ',', 1, true) then return {'no_stage'} end
local again = false
for _, stage in ipairs(plan) do
  -- An earlier stage that did not succeed has to run as well, with all its retries.
  again = again or stage == from or read(a.id, stage, 'state') ~= 'succeeded'
  if again then
    local made = read(a.id, stage, 'artifacts')
    if made ~= '' and made ~= '[]' and made ~= '{}' then -- what is still whole need not be made again
      write(a.id, stage, {previous = made, previous_facts = read(a.id, stage, 'facts'), previous_seal = read(a.id, stage, 'seal')})
    end
    write(a.id, stage, {state = 'pending', retries = '0', crashes = '0', error = '', progress = '', started_at = '',
      finished_at = '', artifacts = '', facts = '', token = ''})
  end
end
local open = first_open_stage(a.id)
for _, name in ipairs(job_keys(a.id)) do redis.call('PERSIST', name) end
redis.call('ZREM', key('expiry'), a.id)
local idempotency = idempotency_key(a.id)
if idempotency then redis.call('PERSIST', idempotency) end
job_set(a.id, 'replay_nonce', a.nonce, 'cancel_requested', '0', 'error', '', 'finished_at', '', 'check_artifacts', '1',
  'rewinds', '0')
set_job_state(a.id, 'queued')
event(a.id, {message = 'Job replayed from ' .. open, stage = open, fields = {from_stage = open}})
enqueue(a.id, open, 0)
return {'queued', message_for(a.id, open)}
