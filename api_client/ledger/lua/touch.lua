-- Writes what a job's record says already: a write to wait for, whoever stored the job and when.
-- Arguments: id. Answers {ok} | {missing}.
if redis.call('EXISTS', job_key(a.id)) == 0 then return {'missing'} end
job_set(a.id, 'id', a.id)
return {'ok'}
