-- Refuses every fill under these tags that began before, and replies with the sets of their members (raise first, then
-- enumerate). KEYS: 1 counters, 2 metadata, 3 windows.
-- ARGV: 1 a generation for a new table, 2 the tags' positions among the counters (4 bytes each), 3 prefix of tag sets,
--       4… the tags. Replies [set, members, set, members, …].
local counters, meta, windows, generation, positions, tag_prefix = KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], ARGV[3]
raise_counters(counters, generation, positions)
local names = {}
for i = 4, #ARGV do names[#names + 1] = ARGV[i] end
return tag_sets(meta, windows, tag_prefix, names)
