-- Drops tag sets in whose window nothing can be alive any more.
-- KEYS: 1 windows. ARGV: 1 prefix of tag sets, 2 most sets. Replies how many were dropped.
local windows, tag_prefix, most = KEYS[1], ARGV[1], tonumber(ARGV[2])
local now, dropped = redis.call('TIME')[1], 0
for _, window in ipairs(redis.call('ZRANGEBYSCORE', windows, '-inf', '(' .. now)) do
  local index = windows .. ':' .. window
  local names = redis.call('SPOP', index, most - dropped)
  for _, name in ipairs(names) do redis.call('UNLINK', tag_prefix .. name .. ':' .. window) end
  dropped = dropped + #names
  -- The set of a window is gone with its last tag.
  if redis.call('EXISTS', index) == 1 then break end
  redis.call('ZREM', windows, window)
end
return dropped
