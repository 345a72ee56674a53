-- The claim that ends a counted job (R9): every script of it is still in this Redis, so the debt is paid, or the
-- pass done. ARGV: 5 job, 6 the count the job knows, 7 the debt that was paid or '',
-- 8 when the pass began (Unix milliseconds) or ''.
-- Answers PAID, or BACK if Redis went back in between.
local why = gone()
if why then return why end
if redis.call('HGET', KEYS[1], 'job:' .. ARGV[5]) ~= ARGV[6] then return 'BACK' end
redis.call('HDEL', KEYS[1], 'job:' .. ARGV[5])
-- A debt made since then is another one.
if ARGV[7] ~= '' and redis.call('HGET', KEYS[1], 'pending:' .. ARGV[3]) == ARGV[7] then
  redis.call('HDEL', KEYS[1], 'pending:' .. ARGV[3])
end
if ARGV[8] ~= '' then
  redis.call('HDEL', KEYS[1], 'backfill:' .. ARGV[3])
  redis.call('HSET', KEYS[1], 'backfilled:' .. ARGV[3], ARGV[8])
end
return 'PAID'
