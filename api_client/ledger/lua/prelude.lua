-- Stands before every script. ARGV[1]: key prefix. ARGV[2]: the script's arguments, one JSON object.
-- Names of keys are those of api_client/ledger/keys.py. Time is the server's: clocks of workers and producers play no part.
local prefix = ARGV[1]
local a = cjson.decode(ARGV[2])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local DAY_MS = 86400000

local function key(name) return prefix .. ':' .. name end
local function job_key(id) return prefix .. ':{' .. id .. '}:job' end
local function stages_key(id) return prefix .. ':{' .. id .. '}:stages' end
local function attempts_key(id) return prefix .. ':{' .. id .. '}:attempts' end
local function events_key(id) return prefix .. ':{' .. id .. '}:events' end
local function member(id, stage) return id .. '|' .. stage end
-- Job and stage of a member; nothing of a text that is none. Whoever meets one takes it out of its index.
local function split(m)
  local id, stage = string.match(m, '^([^|]+)|([^|]+)$')
  return id, stage
end
local function ms(number) return string.format('%.0f', number) end

-- For scripts that go through many jobs: one whose record cannot be read, or is of another type, stops no other.
-- What `action` answers, or nothing. Where the server takes no writes, the script ends as any other does.
local NO_WRITES = {'OOM', 'READONLY', 'MISCONF', 'NOREPLICAS'}
local function alone(action, ...)
  local good, answer = pcall(action, ...)
  if good then return answer end
  local text = type(answer) == 'table' and answer.err or tostring(answer)
  for _, word in ipairs(NO_WRITES) do
    if string.find(text, word, 1, true) then error(answer, 0) end
  end
  return nil
end

-- While a script runs nobody else writes: a field is asked for once, and fields that belong together at once.
local seen = {}
local function fields_of(name)
  seen[name] = seen[name] or {}
  return seen[name]
end
local function ask(name, wanted)
  local known, missing = fields_of(name), {}
  for _, field in ipairs(wanted) do
    if known[field] == nil then missing[#missing + 1] = field end
  end
  if #missing == 0 then return end
  for i, value in ipairs(redis.call('HMGET', name, unpack(missing))) do known[missing[i]] = value or '' end
end
local function get(name, field)
  local known = fields_of(name)
  if known[field] == nil then known[field] = redis.call('HGET', name, field) or '' end
  return known[field]
end
local function put(name, ...)
  redis.call('HSET', name, ...)
  local known, given = fields_of(name), {...}
  for i = 1, #given, 2 do known[given[i]] = type(given[i + 1]) == 'string' and given[i + 1] or nil end
end

local function job_get(id, field) return get(job_key(id), field) end
local function job_set(id, ...) put(job_key(id), ...) end
local function read(id, stage, field) return get(stages_key(id), stage .. ':' .. field) end
local function write(id, stage, values)
  local pairs_of = {}
  for field, value in pairs(values) do
    pairs_of[#pairs_of + 1] = stage .. ':' .. field
    pairs_of[#pairs_of + 1] = value
  end
  put(stages_key(id), unpack(pairs_of))
end
-- Fields of stages that will all be read.
local function ask_stages(id, stages, fields)
  local wanted = {}
  for _, stage in ipairs(stages) do
    for _, field in ipairs(fields) do wanted[#wanted + 1] = stage .. ':' .. field end
  end
  ask(stages_key(id), wanted)
end
local function queued(id, stage) return job_get(id, 'state') ~= '' and read(id, stage, 'state') == 'queued' end
local function number(id, stage, field) return tonumber(read(id, stage, field)) or 0 end
local function plan_of(id) return cjson.decode(job_get(id, 'plan')) end
local function labels_of(id)
  local labels = job_get(id, 'labels')
  return labels ~= '' and cjson.decode(labels) or {} -- of a job that has vanished nothing is known
end
local function config(name, default)
  ask(key('config'), {'events_max', 'events_bytes', 'job_ttl_ms', 'callbacks'})
  return tonumber(get(key('config'), name)) or default
end

local function finished(state) return state == 'succeeded' or state == 'failed' or state == 'cancelled' end

-- A job's log is bounded by its entries and by their bytes (as Redis estimates them); the oldest half gives way.
local function log_entries(id, texts)
  local log = events_key(id)
  for _, text in ipairs(texts) do
    redis.call('XADD', log, 'MAXLEN', '~', config('events_max', 10000), '*', 'event', text)
  end
  if (redis.call('MEMORY', 'USAGE', log) or 0) > config('events_bytes', 4194304) then
    redis.call('XTRIM', log, 'MAXLEN', math.floor(redis.call('XLEN', log) / 2))
  end
end

-- An attempt started or ended; a job that is replayed without end keeps the newest of them.
local function note_attempt(id, record)
  redis.call('RPUSH', attempts_key(id), cjson.encode(record))
  redis.call('LTRIM', attempts_key(id), -400, -1)
end

-- One entry of the job's log. `e`: message, and optionally kind, level, stage, attempt, fields.
local function event(id, e)
  e.time, e.job_id, e.kind = now, id, e.kind or 'Job'
  log_entries(id, {cjson.encode(e)})
end

local function template_index(state, template) return key('jobs:state:' .. state .. ':' .. template) end

local function set_job_state(id, state)
  local old, template = job_get(id, 'state'), job_get(id, 'template')
  if old == state then return end
  if old ~= '' then
    redis.call('ZREM', key('jobs:state:' .. old), id)
    redis.call('SREM', template_index(old, template), id)
  end
  redis.call('ZADD', key('jobs:state:' .. state), job_get(id, 'created_at'), id)
  redis.call('SADD', template_index(state, template), id)
  job_set(id, 'state', state)
end

-- The queue that can run a stage now: the host that holds the job's scratch while it lives, else any worker.
local function queue_for(id, stage)
  local host = job_get(id, 'host')
  if host ~= '' and stage ~= plan_of(id)[1] and redis.call('ZSCORE', key('hosts'), host) then
    return 'packaging.host.' .. host, host
  end
  if stage == plan_of(id)[1] then return 'packaging.io', '' end -- new jobs, which workers take last
  return 'packaging.heavy', ''
end

-- Why a stage waits that neither its queue nor its times tell: a reason of api_client/contract/waiting.py, and what for.
local HELD = {label_limit = true, paused = true, publishing = true, newer_worker = true}
local function unhold(id, stage)
  local reason = read(id, stage, 'held')
  if reason == '' then return end
  if HELD[reason] then redis.call('ZREM', key('held:' .. reason), member(id, stage)) end
  write(id, stage, {held = '', held_for = '', held_limit = '', held_since = ''})
end
local function hold(id, stage, reason, what, limit)
  if read(id, stage, 'held') == reason and read(id, stage, 'held_for') == what then return end
  unhold(id, stage)
  write(id, stage, {held = reason, held_for = what, held_limit = limit or '', held_since = ms(now)})
  redis.call('ZADD', key('held:' .. reason), now, member(id, stage))
end

-- Turns: jobs that wait to be begun stand in a line for each priority and value of the label that operators chose. The
-- line whose turn is lowest goes first, and each job begun moves it on by the inverse of its weight.
local function leave_line(id, stage)
  local line = read(id, stage, 'line')
  if line == '' then return end
  redis.call('ZREM', key('fair:' .. line), member(id, stage))
  write(id, stage, {line = ''})
end
local function join_line(id, stage, since)
  leave_line(id, stage)
  local label = redis.call('HGET', key('fairness'), 'label')
  if not label or read(id, stage, 'queue') ~= 'packaging.io' then return end
  local priority, value = job_get(id, 'priority'), labels_of(id)[label] or ''
  redis.call('ZADD', key('fair:' .. priority .. ':' .. value), since, member(id, stage))
  write(id, stage, {line = priority .. ':' .. value})
  -- A value that comes, or comes back, takes its turn with the others: nothing is saved up.
  local reached = tonumber(redis.call('HGET', key('turns'), priority)) or 0
  local turn = tonumber(redis.call('ZSCORE', key('turns:' .. priority), value))
  if not turn or turn < reached then redis.call('ZADD', key('turns:' .. priority), reached, value) end
end
-- The stage whose turn it is among those of a priority.
local function next_in_turn(priority)
  local reached = tonumber(redis.call('HGET', key('turns'), priority)) or 0
  local lines = redis.call('ZRANGE', key('turns:' .. priority), 0, 999, 'WITHSCORES')
  for at = 1, #lines, 2 do
    local line = key('fair:' .. priority .. ':' .. lines[at])
    local first = redis.call('ZRANGE', line, 0, 0)[1]
    while first do
      local id, stage = split(first)
      if id and queued(id, stage) then return first end
      redis.call('ZREM', line, first) -- begun or ended by a version that knows no lines
      first = redis.call('ZRANGE', line, 0, 0)[1]
    end
    if tonumber(lines[at + 1]) <= reached then redis.call('ZREM', key('turns:' .. priority), lines[at]) end
  end
  return nil
end
local function take_turn(id, stage)
  local priority, value = string.match(read(id, stage, 'line'), '^(%d+):(.*)$')
  if not priority then return end
  local turn = tonumber(redis.call('ZSCORE', key('turns:' .. priority), value)) or 0
  local weight = tonumber(redis.call('HGET', key('fairness'), '=' .. value)) or 1
  redis.call('HSET', key('turns'), priority, tostring(turn))
  redis.call('ZADD', key('turns:' .. priority), turn + 1 / weight, value)
end

local function due_key(id, stage) return key('due:' .. read(id, stage, 'queue')) end

local function dequeue(id, stage)
  ask_stages(id, {stage}, {'state', 'held', 'queue', 'pinned'})
  if read(id, stage, 'state') ~= 'queued' and read(id, stage, 'held') == '' then return end -- in no queue
  local m, pinned = member(id, stage), read(id, stage, 'pinned')
  unhold(id, stage)
  leave_line(id, stage)
  redis.call('ZREM', due_key(id, stage), m)
  redis.call('ZREM', key('sent'), m)
  redis.call('ZREM', key('wake'), m)
  if pinned ~= '' then redis.call('SREM', key('pinned:' .. pinned), m) end
  for label, value in pairs(labels_of(id)) do redis.call('ZREM', key('waiting:' .. label .. '=' .. value), m) end
end

-- Marks a stage queued. With no delay the caller sends the message; with one, whoever finds it due does.
local function enqueue(id, stage, delay_ms)
  -- A stage that only changes its queue has waited since it came to the first one.
  local before = tonumber(redis.call('ZSCORE', due_key(id, stage), member(id, stage)))
  local since = before or now + delay_ms
  dequeue(id, stage)
  local queue, host = queue_for(id, stage)
  local due = delay_ms > 0 and ms(now + delay_ms) or ''
  write(id, stage, {state = 'queued', queue = queue, pinned = host, token = '', not_before = due,
    queued_at = ms(math.min(since, now))})
  redis.call('ZADD', due_key(id, stage), since, member(id, stage))
  if host ~= '' then redis.call('SADD', key('pinned:' .. host), member(id, stage)) end
  if delay_ms > 0 then
    redis.call('ZADD', key('wake'), now + delay_ms, member(id, stage))
  else
    redis.call('ZADD', key('sent'), now, member(id, stage))
    join_line(id, stage, since)
  end
end

-- What a message for a queued stage must say: stage, attempt, queue, priority.
local function message_for(id, stage)
  ask_stages(id, {stage}, {'attempt', 'queue'})
  ask(job_key(id), {'priority', 'schema_version'})
  return {id, stage, tostring(number(id, stage, 'attempt') + 1), read(id, stage, 'queue'), job_get(id, 'priority'),
    tostring(tonumber(job_get(id, 'schema_version')) or 1)}
end

-- A stage that waits for a place under a cap is not due; since when it was comes back with its place.
local function hold_back(id, stage)
  local since = redis.call('ZSCORE', due_key(id, stage), member(id, stage))
  if since then write(id, stage, {due_since = since}) end
  redis.call('ZREM', due_key(id, stage), member(id, stage))
  redis.call('ZREM', key('wake'), member(id, stage)) -- whoever frees it wakes it
  leave_line(id, stage)
end

-- A stage that was held back becomes due.
local function let_go(m)
  local id, stage = split(m)
  if not id then return end
  unhold(id, stage)
  local since = read(id, stage, 'due_since')
  if since ~= '' and queued(id, stage) then redis.call('ZADD', due_key(id, stage), since, m) end
  redis.call('ZREM', key('sent'), m)
  redis.call('ZADD', key('wake'), now, m)
end

-- The next stage that waits for a place under a cap becomes due.
local function wake_next(pair)
  local freed = redis.call('ZPOPMIN', key('waiting:' .. pair))
  if freed[1] then let_go(freed[1]) end
end

-- A change that a person made while the service runs, for whoever asks later who it was.
local function audit(by, action, name, value)
  redis.call('XADD', key('audit'), 'MAXLEN', '~', 1000, '*', 'by', by, 'action', action, 'name', name, 'value', value)
end

-- Notes that a host has had the job's scratch; `host` is the one that has it now.
local function visit(id, host)
  local seen = job_get(id, 'hosts')
  if not string.find(' ' .. seen .. ' ', ' ' .. host .. ' ', 1, true) then job_set(id, 'hosts', seen .. ' ' .. host) end
end

-- A running stage ends: its lease goes, and a stage that waited for its place under a cap becomes due.
local function release(id, stage)
  local m = member(id, stage)
  unhold(id, stage)
  redis.call('ZREM', key('leases'), m)
  for label, value in pairs(labels_of(id)) do
    local pair = label .. '=' .. value
    if redis.call('SREM', key('running:' .. pair), m) == 1 then wake_next(pair) end
  end
end

local function note_attempt_end(id, stage, outcome, failure)
  local record = {stage = stage, number = number(id, stage, 'attempt'), outcome = outcome, finished_at = now}
  if failure ~= '' then record.error = failure end
  note_attempt(id, record)
end

local function first_open_stage(id)
  ask_stages(id, plan_of(id), {'state'})
  for _, stage in ipairs(plan_of(id)) do
    if read(id, stage, 'state') ~= 'succeeded' then return stage end
  end
  return nil
end

-- The key that holds the job's idempotency key, unless a later job has it now.
local function idempotency_key(id)
  local given = job_get(id, 'idempotency_key')
  local known = given ~= '' and redis.call('GET', key('idempotency:' .. given))
  return known and cjson.decode(known).id == id and key('idempotency:' .. given) or nil
end

local function job_keys(id) return {job_key(id), stages_key(id), attempts_key(id), events_key(id)} end

-- Every end of a job is announced once, under a number of its own; workers deliver what stands in `callbacks`.
local function announce(id)
  if job_get(id, 'callback_url') == '' then return end
  local number = redis.call('HINCRBY', job_key(id), 'callbacks', 1)
  job_set(id, 'callback_tries', '0', 'callback_state', 'waiting')
  redis.call('ZADD', key('callbacks'), now, id .. '|' .. ms(number))
end

-- The job ends: no stage stays queued, and its keys get an end of their own.
local function finish(id, state, failure, level, text)
  ask_stages(id, plan_of(id), {'state', 'held'})
  for _, stage in ipairs(plan_of(id)) do dequeue(id, stage) end
  set_job_state(id, state)
  job_set(id, 'finished_at', ms(now), 'error', failure)
  event(id, {level = level, message = text, fields = {job_state = state}})
  announce(id)
  local ttl = config('job_ttl_ms', 14 * DAY_MS)
  redis.call('ZADD', key('expiry'), now + ttl, id)
  for _, name in ipairs(job_keys(id)) do redis.call('PEXPIRE', name, ms(ttl + DAY_MS)) end
  local idempotency = idempotency_key(id)
  if idempotency then redis.call('PEXPIRE', idempotency, ms(ttl)) end
end

local function cancel_job(id)
  ask_stages(id, plan_of(id), {'state', 'held'})
  for _, stage in ipairs(plan_of(id)) do
    if read(id, stage, 'state') ~= 'succeeded' then
      dequeue(id, stage)
      write(id, stage, {state = 'cancelled', finished_at = ms(now)})
    end
  end
  finish(id, 'cancelled', '', 'warning', 'Job cancelled')
end
