-- Keeps a training task. One of other paths stays as it is unless it is to be replaced; the oldest give way to many.
-- Arguments: id, record (JSON), paths (text), replace ('1' or ''), most. Answers {stored} | {conflict, record}.
local known = redis.call('HGET', key('jobs:tasks'), a.id)
if known and a.replace ~= '1' and cjson.decode(known).paths ~= a.paths then return {'conflict', known} end
redis.call('HSET', key('jobs:tasks'), a.id, cjson.encode({paths = a.paths, task = a.record}))
redis.call('ZADD', key('jobs:tasks:at'), now, a.id)
local many = redis.call('ZCARD', key('jobs:tasks:at')) - a.most
if many > 0 then
  for _, id in ipairs(redis.call('ZRANGE', key('jobs:tasks:at'), 0, many - 1)) do
    redis.call('HDEL', key('jobs:tasks'), id)
    redis.call('ZREM', key('jobs:tasks:at'), id)
  end
end
return {'stored'}
