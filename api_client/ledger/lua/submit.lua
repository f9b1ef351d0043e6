-- Stores a job and queues its first stage, once.
-- Arguments: id, nonce, digest, idempotency_key, schema_version, request, options, plan, labels, priority, template,
--   callback_url ('' for none).
-- Answers {created, message} | {known, id} | {conflict, id} | {taken} | {no_callbacks}.
if a.idempotency_key ~= '' then
  local known = redis.call('GET', key('idempotency:' .. a.idempotency_key))
  if known then
    known = cjson.decode(known)
    if redis.call('EXISTS', job_key(known.id)) == 1 then
      if known.nonce == a.nonce then return {'created', message_for(known.id, plan_of(known.id)[1])} end
      return {known.digest == a.digest and 'known' or 'conflict', known.id}
    end
  end
end
if redis.call('EXISTS', job_key(a.id)) == 1 then
  if job_get(a.id, 'nonce') ~= a.nonce then return {'taken'} end
  return {'created', message_for(a.id, plan_of(a.id)[1])} -- the answer to the first call was lost
end
local callback_url = a.callback_url or ''
if callback_url ~= '' and config('callbacks', 1) == 0 then return {'no_callbacks'} end
job_set(a.id, 'id', a.id, 'nonce', a.nonce, 'schema_version', a.schema_version, 'request', a.request,
  'options', a.options, 'plan', a.plan, 'labels', a.labels, 'priority', a.priority, 'created_at', ms(now),
  'idempotency_key', a.idempotency_key, 'cancel_requested', '0', 'template', a.template,
  'callback_url', callback_url)
for _, stage in ipairs(plan_of(a.id)) do write(a.id, stage, {state = 'pending', attempt = '0'}) end
redis.call('ZADD', key('jobs'), now, a.id)
redis.call('SADD', key('jobs:templates'), a.template)
for label, value in pairs(labels_of(a.id)) do redis.call('ZADD', key('jobs:label:' .. label .. '=' .. value), now, a.id) end
if a.idempotency_key ~= '' then
  redis.call('SET', key('idempotency:' .. a.idempotency_key), cjson.encode({id = a.id, digest = a.digest, nonce = a.nonce}))
end
set_job_state(a.id, 'queued')
event(a.id, {message = 'Job submitted', fields = {template = a.template, plan = plan_of(a.id)}})
enqueue(a.id, plan_of(a.id)[1], 0)
return {'created', message_for(a.id, plan_of(a.id)[1])}
