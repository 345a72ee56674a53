-- Takes the KEYS behind the first `before` out of a tag set. Removals are counted: stores whose members an earlier script has
-- added look at the count (X38).
local function remove_members(metadata, set, before)
  local removed = redis.pcall('SREM', set, unpack(KEYS, before + 1))
  if type(removed) == 'number' and 0 < removed then redis.pcall('HINCRBY', metadata, 'removals', 1) end
end
