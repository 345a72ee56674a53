-- Drops tag sets in whose window nothing can be alive any more.
-- KEYS: 1 windows, 2 metadata. ARGV: 1 prefix of tag sets, 2 most sets. Replies how many were dropped.
local windows, meta, tag_prefix, most = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
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
-- Where Redis's clock is set back, a window that was dropped may be open again: stores look at the count (X39).
if 0 < dropped then redis.pcall('HINCRBY', meta, 'removals', 1) end
return dropped
