-- Records that the entries of some stamp slots of a dataset must be revalidated, or that rows of it may be missing: its
-- loads have failed, and nothing was deleted for that (R10).
-- KEYS, ARGV: 1 to 4 see the prelude (3 is ''), 5 the reason, 6 job or '', 7 the dataset, 8 prefix of bitmaps,
--       9 a bitmap of stamp slots or '', 10 'missing' where rows may be missing, or ''.
-- Replies the number of the cause. A bitmap belongs to one cause. At most two stand: the older one may be worked off by
-- now, so what comes is added to the newer one, under a new number.
local reason, job, name, prefix, bitmap, missing = unpack(ARGV, 5, 10)
local failure = check_precondition()
if failure then return failure end
local cause = string.format('%d', next_cause())
if bitmap ~= '' then
  local field, numbers = 'slots:' .. name, {}
  local known = string.match(redis.call('HGET', meta, field) or '', '^[%d,]+') or ''
  for number in string.gmatch(known, '%d+') do numbers[#numbers + 1] = number end
  local key = prefix .. name .. ':' .. cause
  redis.call('SET', key, bitmap)
  if #numbers == 2 then
    local newer = prefix .. name .. ':' .. table.remove(numbers)
    local size = redis.pcall('STRLEN', newer)
    if size == #bitmap then
      redis.call('BITOP', 'OR', key, key, newer)
    else -- it was evicted: every entry is meant
      redis.call('SET', key, string.rep('\255', #bitmap))
    end
    redis.call('UNLINK', newer)
  end
  numbers[#numbers + 1] = cause
  redis.call('HSET', meta, field, table.concat(numbers, ',') .. ' ' .. reason)
end
if missing ~= '' then redis.call('HSET', meta, 'unfilled:' .. name, cause) end
count(job)
return tonumber(cause)
