-- One page of a tag's members, as a counted step (X23).
-- KEYS: 4 the tag's set. ARGV: 5 job, 6 cursor, 7 page size. Answers [cursor, [member, …]].
local why = gone()
if why then return why end
local page = redis.call('SSCAN', KEYS[4], ARGV[6], 'COUNT', ARGV[7])
count(ARGV[5])
return page
