-- Takes an announcement that is due, for a while: if nobody settles it by then, it is due again.
-- Arguments: claim_ms. Answers {taken, id, number, tries, url, claim} | {none}.
for _, m in ipairs(redis.call('ZRANGE', key('callbacks'), '-inf', now, 'BYSCORE', 'LIMIT', 0, 50)) do
  local id, ends = string.match(m, '^(.-)|(.*)$')
  local state = job_get(id, 'state')
  if finished(state) and job_get(id, 'callbacks') == ends then
    local tries = redis.call('HINCRBY', job_key(id), 'callback_tries', 1)
    redis.call('ZADD', key('callbacks'), now + a.claim_ms, m)
    return {'taken', id, ends, tostring(tries), job_get(id, 'callback_url'), ms(now + a.claim_ms)}
  end
  redis.call('ZREM', key('callbacks'), m) -- the job is gone, or was replayed: its next end will be announced
  if state ~= '' then event(id, {level = 'warning', message = 'Callback dropped: the job was replayed before it was delivered'}) end
end
return {'none'}
