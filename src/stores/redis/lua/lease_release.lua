-- Releases a lease, only for its owner. KEYS: 1 the lease. ARGV: 1 what it must hold. Answers 1 if it was held.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('UNLINK', KEYS[1])
