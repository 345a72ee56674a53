-- Raises tags and replies with the sets of their members (R8: raise first, then enumerate).
-- KEYS: 1 to 3 see the prelude, 4 windows. ARGV: 1 to 4 see the prelude, 5 stamp, 6 job, 7 prefix of tag sets, then for each tag its name and slot.
-- Replies [set, members, set, members, …].
local windows, stamp, job, tag_prefix = KEYS[4], ARGV[5], ARGV[6], ARGV[7]
local FIRST_TAG = 8
local failure, _, top = check_precondition()
if failure then return failure end
local names, is_newest = {}, not less(stamp, top)
for i = FIRST_TAG, #ARGV, 2 do
  local name, slot = ARGV[i], tonumber(ARGV[i + 1])
  raise_slot(tag_stamps, slot, stamp, is_newest)
  names[#names + 1] = name
end
raise_top(top, stamp)
count(job)
return tag_sets(meta, windows, tag_prefix, names)
