-- One page of a scan over the entries in Redis that end soon.
-- KEYS, ARGV: 1 to 4 see the prelude, 5 cursor, 6 page size, 7 how to tell use: 'idle', 'freq', or '' (tell nothing), 8 a pattern
--       of keys, then pairs of an entry's prefix and the remaining milliseconds up to which such an entry is wanted.
-- Replies [cursor, key, remaining milliseconds, idle seconds or frequency, key, …]. PTTL and OBJECT do not count as use.
local cursor, page_size, sign, pattern = unpack(ARGV, 5, 8)
local FIRST_PREFIX = 9
local failure = check_precondition()
if failure then return failure end

local function use_of(key)
  if sign == '' then return -1 end
  local seen = redis.pcall('OBJECT', sign == 'freq' and 'FREQ' or 'IDLETIME', key)
  return type(seen) == 'number' and seen or -1
end

local page = redis.call('SCAN', cursor, 'MATCH', pattern, 'COUNT', page_size)
local reply = { page[1] }
for _, key in ipairs(page[2]) do
  local left
  for i = FIRST_PREFIX, #ARGV, 2 do
    local prefix, left_max = ARGV[i], ARGV[i + 1]
    if string.sub(key, 1, #prefix) == prefix then
      left = left or redis.call('PTTL', key)
      if left ~= -2 and left <= tonumber(left_max) then
        local n = #reply
        reply[n + 1], reply[n + 2], reply[n + 3] = key, left, use_of(key)
        -- Another dataset may share the beginning and want the key for itself: the caller tells them apart.
        break
      end
    end
  end
end
return reply
