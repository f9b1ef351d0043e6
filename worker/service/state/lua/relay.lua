-- Writes an attempt's log entries and progress, and what it waits for.
-- Arguments: job_id, stage, token, events (pairs: age in ms, JSON text without its time), progress (JSON text or ''),
--   publishing (the directory that another job publishes into; '' once it is free, nothing where that has not changed).
-- Answers {ok} | {lost}.
if read(a.job_id, a.stage, 'token') ~= a.token then return {'lost'} end
local texts = {}
for i, entry in ipairs(a.events) do texts[i] = '{"time": ' .. ms(now - entry[1]) .. ', ' .. string.sub(entry[2], 2) end
if #texts > 0 then log_entries(a.job_id, texts) end
if a.progress ~= '' then write(a.job_id, a.stage, {progress = a.progress}) end
if a.publishing == '' then unhold(a.job_id, a.stage) end
if a.publishing and a.publishing ~= '' then hold(a.job_id, a.stage, 'publishing', a.publishing) end
return {'ok'}
