-- Forgets where a host has a job's scratch, unless the job goes on: a later attempt may have noted it just now.
-- Arguments: job_id, host. Answers {ok} | {kept}.
local state = job_get(a.job_id, 'state')
if state ~= '' and not finished(state) then return {'kept'} end
redis.call('HDEL', key('scratch:' .. a.host), a.job_id)
return {'ok'}
