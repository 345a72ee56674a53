-- Raises tags and answers the sets in which their members stand (R8: raise first, then enumerate).
-- ARGV: 5 stamp, 6 job, 7 prefix of tag sets, then for each tag its name and slot.
-- Answers [set, members, set, members, …].
local why, head = gone()
if why then return why end
local stamp, top = ARGV[5], head[4]
for i = 8, #ARGV, 2 do raise_slot(KEYS[3], tonumber(ARGV[i + 1]), stamp, top) end
raise_top(top, stamp)

local names = {}
for i = 8, #ARGV, 2 do names[#names + 1] = ARGV[i] end
count(ARGV[6])
return tag_sets(KEYS[1], ARGV[7], names)
