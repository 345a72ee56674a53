-- Releases locks, each only for its owner, and wakes who waits. KEYS: 1 channel (named as a key, so that it carries the
-- namespace), 2… the locks. ARGV: for each its name and what it must hold. Answers how many were held.
local released = 0
for i = 2, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[2 * i - 2] then
    released = released + redis.call('UNLINK', KEYS[i])
    redis.call('PUBLISH', KEYS[1], ARGV[2 * i - 3])
  end
end
return released
