-- Notes how far the revalidation of a dataset is; it goes with what is pending.
-- KEYS, ARGV: 1 to 4 see the prelude, 5 the counts, 6 the run id of the server that the place is of or '', 7 the rest of the place.
-- A place is noted on that server only: cursors of another one mean nothing.
-- Replies 1.
local counts, run, rest = unpack(ARGV, 5, 7)
local failure = check_precondition()
if failure then return failure end
if run ~= '' and run == run_of_server() then counts = counts .. ' ' .. rest end
redis.call('HSET', meta, 'progress:' .. dataset, counts)
return 1
