-- Deletes entries of an application, and refuses every fill that began before.
-- KEYS: 1 counters, 2… the keys.
-- ARGV: 1 a generation for a new table, 2 the keys' positions among the counters (4 bytes each), 3 a tag set that loses
--       these members, or ''. Replies how many were deleted.
local counters, generation, positions, tag_set = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
raise_counters(counters, generation, positions)
if tag_set ~= '' then redis.pcall('SREM', tag_set, unpack(KEYS, 2)) end
return #KEYS > 1 and redis.call('UNLINK', unpack(KEYS, 2)) or 0
