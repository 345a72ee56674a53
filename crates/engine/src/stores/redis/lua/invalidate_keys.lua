-- Deletes entries of an application, and refuses every fill that began before.
-- KEYS: 1 counters, 2 metadata, 3… the keys.
-- ARGV: 1 a generation for a new table, 2 the keys' positions among the counters (4 bytes each), 3 a tag set that loses
--       these members, or ''. Replies how many were deleted.
local counters, meta, generation, positions, tag_set = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local BEFORE_KEYS = 2
raise_counters(counters, generation, positions)
if #KEYS == BEFORE_KEYS then return 0 end
if tag_set ~= '' then remove_members(meta, tag_set, BEFORE_KEYS) end
return redis.call('UNLINK', unpack(KEYS, BEFORE_KEYS + 1))
