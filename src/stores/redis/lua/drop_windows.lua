-- Drops tag sets in whose window nothing can be alive any more. KEYS: 1 windows. ARGV: 1 most sets.
local now = redis.call('TIME')[1]
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. now, 'LIMIT', 0, ARGV[1])
for _, set in ipairs(old) do
  redis.call('UNLINK', set)
  redis.call('ZREM', KEYS[1], set)
end
return #old
