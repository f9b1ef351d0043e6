-- Writes an attempt's log entries and progress.
-- Arguments: job_id, stage, token, events (pairs: age in ms, JSON text without its time), progress (JSON text or '').
-- Answers {ok} | {lost}.
if read(a.job_id, a.stage, 'token') ~= a.token then return {'lost'} end
for _, entry in ipairs(a.events) do
  local text = '{"time": ' .. ms(now - entry[1]) .. ', ' .. string.sub(entry[2], 2)
  log_entry(a.job_id, text)
end
if a.progress ~= '' then write(a.job_id, a.stage, {progress = a.progress}) end
return {'ok'}
