-- Shortens the lifetimes of entries that are longer than any that counts now.
-- KEYS: 1 to 3 see the prelude, 4… the keys.
-- ARGV: 1 to 4 see the prelude, 5 the longest in milliseconds that an entry may have left, 6… the lifetime of each key.
-- Replies how many were shortened.
local BEFORE_KEYS, BEFORE_LIVES = 3, 5
local longest = tonumber(ARGV[5])
local failure = check_precondition()
if failure then return failure end
local shortened = 0
for i = 1, #KEYS - BEFORE_KEYS do
  local key = KEYS[BEFORE_KEYS + i]
  -- PTTL of what is gone would be a miss to Redis, and misses are filled.
  local is_there = redis.call('OBJECT', 'ENCODING', key)
  local left = is_there and redis.call('PTTL', key) or -2
  if left == -1 or longest < left then
    shortened = shortened + redis.call('PEXPIRE', key, ARGV[BEFORE_LIVES + i])
  end
end
return shortened
