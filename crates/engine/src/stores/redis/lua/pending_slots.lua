-- The stamp slots of a dataset that are pending, as a counted step of the job that revalidates them.
-- KEYS, ARGV: 1 to 4 see the prelude, 5 job, 6 prefix of bitmaps.
-- Replies [number of the newest cause, bitmap, …]. One that was evicted is '': every entry is meant then.
local job, prefix = ARGV[5], ARGV[6]
local failure = check_precondition()
if failure then return failure end
local reply = { tonumber(redis.call('HGET', meta, 'causes') or 0) }
local known = string.match(redis.call('HGET', meta, 'slots:' .. dataset) or '', '^[%d,]+') or ''
for number in string.gmatch(known, '%d+') do
  local bitmap = redis.pcall('GET', prefix .. dataset .. ':' .. number)
  reply[#reply + 1] = type(bitmap) == 'string' and bitmap or ''
end
count(job)
return reply
