-- Raises keys, cached or not (R6), and then deletes them or replies which exist.
-- KEYS: 1 to 3 see the prelude, 4… the keys.
-- ARGV: 1 to 4 see the prelude, 5 stamp, 6 'delete' or 'exists', 7 job or '', 8 the keys' slots (4 bytes each),
--       9 a tag set that loses these members, or ''.
-- Replies how many were deleted, or the positions of those that exist. A delete is carried out even where the
-- precondition failed: absence is always right.
local stamp, action, job, slots, tag_set = unpack(ARGV, 5, 9)
local BEFORE_KEYS = 3
local n = #KEYS - BEFORE_KEYS
local failure, _, top = check_precondition()
if not failure then
  local is_newest = not less(stamp, top)
  for i = 1, n do raise_slot(stamps, packed(slots, i), stamp, is_newest) end
  raise_top(top, stamp)
end
local reply
if action == 'delete' then
  reply = unlink_keys(BEFORE_KEYS)
elseif not failure then
  reply = {}
  for i = 1, n do
    -- EXISTS would be a miss to Redis, and misses are filled.
    local encoding = redis.pcall('OBJECT', 'ENCODING', KEYS[BEFORE_KEYS + i])
    if type(encoding) == 'string' then reply[#reply + 1] = i - 1 end
  end
end
if failure then return failure end
if tag_set ~= '' then remove_members(meta, tag_set, BEFORE_KEYS) end
count(job)
return reply
