-- Takes an announcement that is due, for a while: if nobody settles it by then, it is due again. An entry that is no
-- announcement, or whose job's record is unreadable, leaves the queue: it would stand before all others for ever.
-- Arguments: claim_ms. Answers {taken, id, number, tries, url, claim} | {dropped, entry, reason} | {none}.
local function kind(name) return redis.call('TYPE', name).ok end

-- Why nobody can make an announcement; nil where it can be made. Looked at, not tried: a Redis that is full fails too.
local function unreadable(id)
  if not id then return 'it names no job' end
  local job, log = kind(job_key(id)), kind(events_key(id))
  if job ~= 'hash' and job ~= 'none' then return 'the record of the job is a ' .. job end
  if log ~= 'stream' and log ~= 'none' then return 'the log of the job is a ' .. log end
  return nil
end

for _, m in ipairs(redis.call('ZRANGE', key('callbacks'), '-inf', now, 'BYSCORE', 'LIMIT', 0, 50)) do
  local id, ends = split(m)
  local reason = unreadable(id)
  local state = reason and '' or job_get(id, 'state')
  local due = finished(state) and job_get(id, 'callbacks') == ends
  local url = due and job_get(id, 'callback_url')
  if due and not string.match(url, '^https?://[\33-\126]+$') then reason = 'the job names no address' end
  if due and not reason then
    local tries = (tonumber(job_get(id, 'callback_tries')) or 0) + 1
    job_set(id, 'callback_tries', ms(tries))
    redis.call('ZADD', key('callbacks'), now + a.claim_ms, m)
    return {'taken', id, ends, ms(tries), url, ms(now + a.claim_ms)}
  end
  redis.call('ZREM', key('callbacks'), m)
  if reason then return {'dropped', (string.gsub(m, '[^\32-\126]', '?')), reason} end
  -- the job is gone, or was replayed: its next end will be announced
  if state ~= '' then event(id, {level = 'warning', message = 'Callback dropped: the job was replayed before it was delivered'}) end
end
return {'none'}
