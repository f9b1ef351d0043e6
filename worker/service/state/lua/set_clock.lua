-- Notes the server's time. Where it went back (set by hand, or by a failover to a server whose clock is behind), what is
-- due at a time goes back with it, or it would wait for as long as the clock was ahead.
-- Arguments: tolerance_ms. Answers {ms that were gone back}.
local seen = tonumber(redis.call('GET', key('clock')) or '0')
redis.call('SET', key('clock'), ms(now))
local back = seen - now
if back <= a.tolerance_ms then return {'0'} end
for _, name in ipairs({'wake', 'sent', 'callbacks'}) do
  for _, m in ipairs(redis.call('ZRANGE', key(name), 0, -1)) do redis.call('ZINCRBY', key(name), ms(-back), m) end
end
return {ms(back)}
