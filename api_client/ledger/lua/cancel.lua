-- Asks for a job's end. With no stage running it ends at once; else the worker that runs one sees the request.
-- Arguments: id, nonce. Answers {missing} | {finished, state} | {cancelled} | {requested}.
local state = job_get(a.id, 'state')
if state == '' then return {'missing'} end
if finished(state) then
  if state == 'cancelled' and job_get(a.id, 'cancel_nonce') == a.nonce then return {'cancelled'} end -- said before, not heard
  return {'finished', state}
end
local first = job_get(a.id, 'cancel_requested') ~= '1'
job_set(a.id, 'cancel_requested', '1')
if first then job_set(a.id, 'cancel_nonce', a.nonce) end
for _, stage in ipairs(plan_of(a.id)) do
  if read(a.id, stage, 'state') == 'running' then
    if first then event(a.id, {level = 'warning', stage = stage, message = 'Cancel requested'}) end
    return {'requested'}
  end
end
cancel_job(a.id)
return {'cancelled'}
