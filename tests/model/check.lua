-- Every invariant of the records of a few jobs, checked in one step. Stands after the prelude.
-- Arguments: ids. Answers {problems, live tokens ('job stage token' of running stages), digest of jobs and stages by id}.
local problems = {}
local function bad(text) problems[#problems + 1] = text end
local function members(name, ordered)
  if ordered then return redis.call('ZRANGE', name, 0, -1) end
  return redis.call('SMEMBERS', name)
end
local function in_zset(name, m) return redis.call('ZSCORE', key(name), m) end
local ids, live, digests = {}, {}, {}
local function hash_text(name)
  local flat, lines = redis.call('HGETALL', name), {}
  for i = 1, #flat, 2 do lines[#lines + 1] = flat[i] .. '=' .. flat[i + 1] end
  table.sort(lines)
  return table.concat(lines, ';')
end
local every = redis.call('KEYS', prefix .. ':*')
table.sort(every)

for _, id in ipairs(a.ids) do
  ids[id] = true
  local state = job_get(id, 'state')
  if state == '' then
    digests[#digests + 1] = ''
    for _, name in ipairs(every) do
      if string.find(name, id, 1, true) then bad(name .. ' outlives its job') end
    end
  else
    digests[#digests + 1] = redis.sha1hex(hash_text(job_key(id)) .. '|' .. hash_text(stages_key(id)))
    local open, running, waiting = first_open_stage(id), 0, 0
    local past_open = false
    for _, stage in ipairs(plan_of(id)) do
      local m, s, token = member(id, stage), read(id, stage, 'state'), read(id, stage, 'token')
      local leased = in_zset('leases', m)
      if (s == 'running') ~= (token ~= '') then bad(m .. ' is ' .. s .. ' with the token "' .. token .. '"') end
      if (s == 'running') ~= (not not leased) then bad(m .. ' is ' .. s .. (leased and ' and leased' or ' without a lease')) end
      if s == 'running' then
        running = running + 1
        live[#live + 1] = id .. ' ' .. stage .. ' ' .. token
      end
      local sent, wake = in_zset('sent', m), in_zset('wake', m)
      if s == 'queued' then
        waiting = waiting + 1
        if not sent and not wake then bad(m .. ' is queued and nobody will send its message') end
        if sent and wake then bad(m .. ' is both sent and delayed') end
        local held = read(id, stage, 'held')
        if not in_zset('due:' .. read(id, stage, 'queue'), m) and held == '' then bad(m .. ' is queued in no queue') end
      elseif sent or wake then
        bad(m .. ' is ' .. s .. ' and still to be sent')
      end
      if not finished(state) then
        -- files of an earlier stage were lost: it runs again, and what is whole of later ones stays
        local gone_back = (tonumber(job_get(id, 'rewinds')) or 0) > 0
        if stage == open then
          past_open = true
          if s ~= 'queued' and s ~= 'running' then bad(m .. ' is the open stage and ' .. s) end
        elseif past_open and s ~= 'pending' and not (s == 'succeeded' and gone_back) then
          bad(m .. ' comes after the open stage and is ' .. s)
        end
      elseif s == 'queued' or s == 'running' then
        bad(m .. ' is ' .. s .. ' in a job that is ' .. state)
      end
    end
    if not finished(state) and running + waiting ~= 1 then bad(id .. ' has ' .. running + waiting .. ' stages at work') end
    if state == 'succeeded' and open then bad(id .. ' succeeded without ' .. open) end
    if state == 'queued' and running > 0 then bad(id .. ' is queued and runs') end
    if finished(state) ~= not not in_zset('expiry', id) then bad(id .. ' is ' .. state .. ' and its expiry says otherwise') end
    if finished(state) ~= (redis.call('PTTL', job_key(id)) > 0) then bad(id .. ' is ' .. state .. ' and its keys live otherwise') end
    if not in_zset('jobs', id) then bad(id .. ' is in no list') end
    for label, value in pairs(labels_of(id)) do
      if not in_zset('jobs:label:' .. label .. '=' .. value, id) then bad(id .. ' is not found by its label') end
    end
    for _, other in ipairs({'queued', 'running', 'succeeded', 'failed', 'cancelled'}) do
      local here = not not in_zset('jobs:state:' .. other, id)
      local there = redis.call('SISMEMBER', template_index(other, job_get(id, 'template')), id) == 1
      if here ~= (other == state) or there ~= (other == state) then bad(id .. ' is ' .. state .. ', and listed otherwise under ' .. other) end
    end
  end
end

-- Nothing in an index that is not so in the records.
local function each(name, ordered, rule)
  for _, m in ipairs(members(name, ordered)) do
    local id, stage = split(m)
    local s = id and read(id, stage, 'state') or ''
    if not ids[id or m] then bad(name .. ' names ' .. m) elseif rule then rule(m, id, stage, s) end
  end
end
for _, name in ipairs(every) do
  local short = string.sub(name, #prefix + 2)
  local function state_is(wanted)
    return function(m, _, _, s) if s ~= wanted then bad(short .. ' has ' .. m .. ', which is ' .. s) end end
  end
  if short == 'leases' then each(name, true, state_is('running'))
  elseif short == 'sent' or short == 'wake' then each(name, true, state_is('queued'))
  elseif string.sub(short, 1, 4) == 'due:' then
    each(name, true, function(m, id, stage, s)
      if s ~= 'queued' or 'due:' .. read(id, stage, 'queue') ~= short then bad(short .. ' has ' .. m .. ', which is ' .. s) end
    end)
  elseif string.sub(short, 1, 8) == 'waiting:' then each(name, true, state_is('queued'))
  elseif string.sub(short, 1, 5) == 'fair:' then
    each(name, true, function(m, id, stage, s)
      if s ~= 'queued' or 'fair:' .. read(id, stage, 'line') ~= short then bad(short .. ' has ' .. m .. ', which is ' .. s) end
      local turns = 'turns:' .. string.sub(short, 6, 6)
      if not in_zset(turns, string.sub(short, 8)) then bad(short .. ' waits without a turn') end
    end)
  elseif string.sub(short, 1, 7) == 'pinned:' then each(name, false, state_is('queued'))
  elseif string.sub(short, 1, 8) == 'running:' then
    each(name, false, state_is('running'))
    local most = a.most[string.sub(short, 9)]
    if most and redis.call('SCARD', name) > most then bad(short .. ' has more than ' .. most) end
  elseif string.sub(short, 1, 5) == 'held:' then
    each(name, true, function(m, id, stage)
      if 'held:' .. read(id, stage, 'held') ~= short then bad(short .. ' has ' .. m .. ', which says otherwise') end
    end)
  elseif string.sub(short, 1, 5) == 'jobs:' and short ~= 'jobs:templates' or short == 'jobs' or short == 'expiry' then
    local ordered = redis.call('TYPE', name).ok == 'zset'
    for _, id in ipairs(members(name, ordered)) do
      if job_get(id, 'state') == '' then bad(short .. ' names ' .. id .. ', which is gone') end
    end
  end
end
return {problems, live, digests}
