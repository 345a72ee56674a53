-- Ends a counted job (R9): every script of it is still in this Redis, so the revalidation or the backfill is done.
-- KEYS, ARGV: 1 to 4 see the prelude, 5 job, 6 the count the job knows, 7 the pending revalidation that was run or '',
--       8 when the backfill began (Unix milliseconds) or ''.
-- Replies FINISHED, or ROLLED_BACK if Redis lost scripts of the job.
local job, known, revalidated, began = unpack(ARGV, 5, 8)
local failure = check_precondition()
if failure then return failure end
if redis.call('HGET', meta, 'job:' .. job) ~= known then return redis.status_reply('ROLLED_BACK') end
redis.call('HDEL', meta, 'job:' .. job)
-- What became pending since then is another one.
if revalidated ~= '' and redis.call('HGET', meta, 'pending:' .. dataset) == revalidated then
  redis.call('HDEL', meta, 'pending:' .. dataset)
end
if began ~= '' then
  redis.call('HDEL', meta, 'backfill:' .. dataset)
  redis.call('HSET', meta, 'backfilled:' .. dataset, began)
end
return redis.status_reply('FINISHED')
