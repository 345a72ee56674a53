-- Takes a lease if it is free. KEYS: 1 the lease. ARGV: 1 owner, 2 lifetime in milliseconds.
-- Answers [fencing token], or [0, remaining milliseconds, owner] of who holds it. The token is Redis's clock in
-- microseconds, so it grows from holder to holder although a lease leaves nothing behind.
local holder = redis.call('GET', KEYS[1])
if holder then return { 0, redis.call('PTTL', KEYS[1]), holder } end
local now = redis.call('TIME')
local token = now[1] * 1000000 + now[2]
redis.call('SET', KEYS[1], string.format('%.0f', token) .. ' ' .. ARGV[1], 'PX', ARGV[2])
return { token }
