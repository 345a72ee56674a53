-- Extends entries while Postgres is down, each only as it was when it was judged.
-- KEYS: 1 to 3 see the prelude, 4… the keys.
-- ARGV: 1 to 4 see the prelude, 5 new lifetime in milliseconds, 6… the remaining milliseconds that were seen, one a key.
-- Replies how many were extended. A lifetime that grew meanwhile belongs to a newer store and is left alone.
local BEFORE_KEYS, BEFORE_SEEN = 3, 5
local life = tonumber(ARGV[5])
local failure = check_precondition()
if failure then return failure end
local extended = 0
for i = 1, #KEYS - BEFORE_KEYS do
  local key, seen = KEYS[BEFORE_KEYS + i], tonumber(ARGV[BEFORE_SEEN + i])
  -- PTTL of what is gone would be a miss to Redis, and misses are filled.
  local is_there = redis.call('OBJECT', 'ENCODING', key)
  local left = is_there and redis.call('PTTL', key) or -2
  if left >= 0 and left <= seen and left < life then
    extended = extended + redis.call('PEXPIRE', key, ARGV[5])
  end
end
return extended
