-- Releases locks, each only for its owner, and wakes who waits.
-- KEYS: 1 channel (named as a key, so that it carries the namespace), 2… the locks.
-- ARGV: for each its name and what it must hold. Replies how many were held.
local channel, released = KEYS[1], 0
for i = 2, #KEYS do
  local name, content = ARGV[2 * i - 3], ARGV[2 * i - 2]
  if redis.call('GET', KEYS[i]) == content then
    released = released + redis.call('UNLINK', KEYS[i])
    redis.call('PUBLISH', channel, name)
  end
end
return released
