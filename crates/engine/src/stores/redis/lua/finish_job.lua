-- Ends a counted job (R9): every script of it is still in this Redis, so the revalidation or the backfill is done.
-- KEYS, ARGV: 1 to 4 see the prelude, 5 job, 6 the count the job knows, 7 what is done: '', 'revalidation' or 'backfill',
--       8 the newest cause when it began (what came later it has not seen), 9 of a revalidation 'all' where Redis is to hold
--       every row, which a scan of Redis cannot see to, 10 when the backfill began (Unix milliseconds) or ''.
-- Replies FINISHED, or ROLLED_BACK if Redis lost scripts of the job.
local job, known, done, seen, holds, began = unpack(ARGV, 5, 10)
local failure = check_precondition()
if failure then return failure end
if redis.call('HGET', meta, 'job:' .. job) ~= known then return redis.status_reply('ROLLED_BACK') end
redis.call('HDEL', meta, 'job:' .. job)
local function cause_of(field) return tonumber(string.match(redis.call('HGET', meta, field .. dataset) or '', '(%d+)$') or 0) end
if done == 'revalidation' then
  local cause = cause_of('pending:')
  if 0 < cause and cause <= tonumber(seen) then
    redis.call('HDEL', meta, 'pending:' .. dataset)
    -- What is missing a backfill fills that began after the cause.
    if holds == 'all' and cause_of('backfilled:') < cause then redis.call('HSET', meta, 'unfilled:' .. dataset, cause) end
  end
elseif done == 'backfill' then
  redis.call('HDEL', meta, 'backfill:' .. dataset)
  redis.call('HSET', meta, 'backfilled:' .. dataset, began .. ' ' .. seen)
  if cause_of('unfilled:') <= tonumber(seen) then redis.call('HDEL', meta, 'unfilled:' .. dataset) end
end
return redis.status_reply('FINISHED')
