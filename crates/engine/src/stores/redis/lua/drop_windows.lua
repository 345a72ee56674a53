-- Drops tag sets whose window is over. Redis's clock may have been set ahead, so that what is over by it is still there and lives on
-- where the clock comes back. So each member is looked at in the script that takes it out: Redis deletes what has expired when
-- somebody looks, and what is there after that was stored later, with a window of its own.
-- KEYS: 1 windows, 2 metadata. ARGV: 1 prefix of tag sets, 2 most members and sets at once.
-- Replies [dropped sets, 1 where there is more].
local windows, meta, tag_prefix, most = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
local dropped, done = 0, 0

-- Takes members out of a set. True: it is empty.
local function take_members(set)
  local members = redis.pcall('SPOP', set, most - done)
  if members.err then -- something else stands there
    redis.call('UNLINK', set)
    return true
  end
  -- The only look that is neither a use of the entry nor, where there is none, a miss.
  for _, key in ipairs(members) do redis.call('OBJECT', 'ENCODING', key) end
  done = done + #members
  return done < most
end

-- A tag leaves the list of its window when its set is empty. True: all of them have.
local function take_tags(window, index)
  while done < most do
    local name = redis.pcall('SPOP', index)
    if not name then return true end
    if name.err then -- something else stands there
      redis.call('UNLINK', index)
      return true
    end
    if not take_members(tag_prefix .. name .. ':' .. window) then
      redis.call('SADD', index, name)
      return false
    end
    dropped, done = dropped + 1, done + 1
  end
  return false
end

-- A whole second is over, so whatever was to live until the window's end has expired by the clock of this script too.
local now, is_all = tonumber(redis.call('TIME')[1]), true
for _, window in ipairs(redis.call('ZRANGEBYSCORE', windows, '-inf', now - 1)) do
  is_all = take_tags(window, windows .. ':' .. window)
  if not is_all then break end
  redis.call('ZREM', windows, window)
end
-- Stores that rely on members which an earlier script has added look at the count: the clock may be set back (X39).
if 0 < done then redis.pcall('HINCRBY', meta, 'removals', 1) end
return { dropped, is_all and 0 or 1 }
