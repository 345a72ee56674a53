-- Drops tag sets in whose window nothing can be alive any more.
-- KEYS: 1 windows. ARGV: 1 prefix of tag sets, 2 most sets. Answers how many were dropped.
local now, dropped = redis.call('TIME')[1], 0
for _, window in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. now)) do
  local index = KEYS[1] .. ':' .. window
  local names = redis.call('SPOP', index, ARGV[2] - dropped)
  for _, name in ipairs(names) do redis.call('UNLINK', ARGV[1] .. name .. ':' .. window) end
  dropped = dropped + #names
  -- The set of a window is gone with its last tag.
  if redis.call('EXISTS', index) == 1 then break end
  redis.call('ZREM', KEYS[1], window)
end
return dropped
