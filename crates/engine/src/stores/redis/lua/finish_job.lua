-- Ends a counted job (R9): every script of it is still in this Redis, so the revalidation or the backfill is done.
-- KEYS, ARGV: 1 to 4 see the prelude, 5 job, 6 the count the job knows, 7 what is done: '', 'revalidation' (every entry),
--       'slots' (those of the pending stamp slots) or 'backfill', 8 the newest cause when it began (what came later it has not
--       seen), 9 of a revalidation 'all' where Redis is to hold every row, which a scan of Redis cannot see to, or 'filled' where a
--       backfill of this job has seen to it, 10 when the backfill began (Unix milliseconds) or '', 11 prefix of the bitmaps of pending stamp slots.
-- Replies FINISHED, or ROLLED_BACK if Redis lost scripts of the job.
local job, known, done, seen, holds, began, prefix = unpack(ARGV, 5, 11)
local failure = check_precondition()
if failure then return failure end
if redis.call('HGET', meta, 'job:' .. job) ~= known then return redis.status_reply('ROLLED_BACK') end
redis.call('HDEL', meta, 'job:' .. job, 'members:' .. job)
local function cause_of(field) return tonumber(string.match(redis.call('HGET', meta, field .. dataset) or '', '(%d+)$') or 0) end
-- Bitmaps of causes that were seen go, those of later ones stay.
local function settle_slots()
  local field, later = 'slots:' .. dataset, {}
  local numbers, reason = string.match(redis.call('HGET', meta, field) or '', '^([%d,]+) (.*)$')
  for number in string.gmatch(numbers or '', '%d+') do
    if tonumber(number) <= tonumber(seen) then
      redis.call('UNLINK', prefix .. dataset .. ':' .. number)
    else
      later[#later + 1] = number
    end
  end
  if #later == 0 then redis.call('HDEL', meta, field) else redis.call('HSET', meta, field, table.concat(later, ',') .. ' ' .. reason) end
end
if done == 'revalidation' or done == 'slots' then
  settle_slots()
  redis.call('HDEL', meta, 'progress:' .. dataset)
end
if done == 'revalidation' then
  local cause = cause_of('pending:')
  if 0 < cause and cause <= tonumber(seen) then
    redis.call('HDEL', meta, 'pending:' .. dataset)
    -- What is missing a backfill fills that began after the cause.
    if holds == 'all' and cause_of('backfilled:') < cause and cause_of('unfilled:') < cause then
      redis.call('HSET', meta, 'unfilled:' .. dataset, cause)
    end
  end
end
if done == 'backfill' or holds == 'filled' then
  redis.call('HDEL', meta, 'backfill:' .. dataset)
  redis.call('HSET', meta, 'backfilled:' .. dataset, began .. ' ' .. seen)
  if cause_of('unfilled:') <= tonumber(seen) then redis.call('HDEL', meta, 'unfilled:' .. dataset) end
end
return redis.status_reply('FINISHED')
