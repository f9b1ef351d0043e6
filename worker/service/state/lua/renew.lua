-- Renews a lease, and says whether the job is to be cancelled. Also answers a stage that asks whether it may publish.
-- Arguments: job_id, stage, token, lease_ms. Answers {ok} | {cancel} | {lost}.
if read(a.job_id, a.stage, 'token') ~= a.token or a.token == '' then return {'lost'} end
redis.call('ZADD', key('leases'), now + a.lease_ms, member(a.job_id, a.stage))
if job_get(a.job_id, 'cancel_requested') == '1' then return {'cancel'} end
return {'ok'}
