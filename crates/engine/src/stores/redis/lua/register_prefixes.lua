-- Registers prefixes of keys as those of an application, or notes that they are still in use.
-- KEYS: 1 the prefixes: a hash with the second in which each was last registered.
-- ARGV: 1 seconds after which one is forgotten, 2 most prefixes, then the prefixes. Replies how many are registered.
local prefixes = KEYS[1]
local forgotten_after, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local FIRST = 3
local now = tonumber(redis.call('TIME')[1])
local known = redis.call('HGETALL', prefixes)
for i = 1, #known, 2 do
  if tonumber(known[i + 1]) + forgotten_after < now then redis.call('HDEL', prefixes, known[i]) end
end
local registered = 0
for i = FIRST, #ARGV do
  if redis.call('HEXISTS', prefixes, ARGV[i]) == 1 or redis.call('HLEN', prefixes) < most then
    redis.call('HSET', prefixes, ARGV[i], now)
    registered = registered + 1
  end
end
return registered
