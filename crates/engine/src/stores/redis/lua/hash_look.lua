-- What a hash holds, up to so many bytes of names and values, or all where `most` is ''.
-- Answers [fields, bytes, names and values in turn]; of one that is larger, or has more fields than a row can have columns, [fields, bytes]
-- alone (0 bytes where they were not counted).
local COLUMNS_MAX = 1664

local function look_at_hash(hash, most)
  local fields = redis.call('HLEN', hash)
  if COLUMNS_MAX < fields then return { fields, 0 } end
  local bytes = 0
  if most ~= '' then
    for _, name in ipairs(redis.call('HKEYS', hash)) do
      local length = redis.pcall('HSTRLEN', hash, name)
      -- A user that needs no hashes may not ask.
      if type(length) == 'table' then return { fields, 0 } end
      bytes = bytes + #name + length
    end
    if tonumber(most) < bytes then return { fields, bytes } end
  end
  return { fields, bytes, redis.call('HGETALL', hash) }
end
