-- Deletes entries of an application, and refuses every fill that began before.
-- KEYS: 1 fences, 2… the keys. ARGV: 1 a generation for a new table, 2 the keys' positions among the counters
-- (4 bytes each), 3 a tag set that loses these members, or ''. Answers how many were deleted.
raise_fences(KEYS[1], ARGV[1], ARGV[2])
if ARGV[3] ~= '' then redis.pcall('SREM', ARGV[3], unpack(KEYS, 2)) end
return #KEYS > 1 and redis.call('UNLINK', unpack(KEYS, 2)) or 0
