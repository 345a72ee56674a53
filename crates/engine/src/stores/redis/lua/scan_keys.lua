-- One page of a scan over the keys of entries, as a counted step (X22).
-- KEYS, ARGV: 1 to 4 see the prelude, 5 job or '', 6 cursor, 7 page size, 8 a pattern of keys.
-- Replies [cursor, [key, …]].
local job, cursor, page_size, pattern = unpack(ARGV, 5, 8)
local failure = check_precondition()
if failure then return failure end
local page = redis.call('SCAN', cursor, 'MATCH', pattern, 'COUNT', page_size)
count(job)
return page
