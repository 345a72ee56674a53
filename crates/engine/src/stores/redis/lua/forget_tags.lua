-- Refuses every fill under these tags that began before, and answers the sets of their members (raise first, then
-- enumerate). KEYS: 1 fences, 2 head. ARGV: 1 a generation for a new table, 2 the tags' positions among the counters
-- (4 bytes each), 3 prefix of tag sets, 4… the tags. Answers [set, members, set, members, …].
raise_fences(KEYS[1], ARGV[1], ARGV[2])
local names = {}
for i = 4, #ARGV do names[#names + 1] = ARGV[i] end
return tag_sets(KEYS[2], ARGV[3], names)
