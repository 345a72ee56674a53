-- One page of a tag's members, as a counted step (X23).
-- KEYS: 1 to 3 see the prelude, 4 the tag's set. ARGV: 1 to 4 see the prelude, 5 job, 6 cursor, 7 page size.
-- Replies [cursor, [member, …]].
local set, job, cursor, page_size = KEYS[4], ARGV[5], ARGV[6], ARGV[7]
local failure = check_precondition()
if failure then return failure end
local page = redis.call('SSCAN', set, cursor, 'COUNT', page_size)
count(job)
return page
