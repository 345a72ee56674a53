-- Notes how far the revalidation of a dataset is; it goes with what is pending.
-- KEYS, ARGV: 1 to 4 see the prelude, 5 what is noted.
-- Replies 1.
local failure = check_precondition()
if failure then return failure end
redis.call('HSET', meta, 'progress:' .. dataset, ARGV[5])
return 1
