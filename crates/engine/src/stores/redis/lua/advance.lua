-- Moves the cursor and, with it, the watermark (R12): every change up to the new cursor is in this Redis.
-- KEYS: 1 to 3 see the prelude, 4 watermark.
-- ARGV: 1 to 4 see the prelude, 5 job, 6 the count the job knows, 7 the cursor it read from, 8 the new one, 9 as_of,
--       10 why a dataset is pending that was not covered until now, 11 epoch as text, 12 a nonce,
--       then pairs of a dataset that is covered and its coverage fingerprint.
-- Replies DONE, or ROLLED_BACK if Redis lost scripts of the job, or MOVED if somebody else moved the cursor.
local watermark = KEYS[4]
local job, known, from, to, as_of, reason, epoch_text, nonce = unpack(ARGV, 5, 12)
local FIRST_DATASET = 13
local failure = check_precondition()
if failure then return failure end
if redis.call('HGET', meta, 'job:' .. job) ~= known then return redis.status_reply('ROLLED_BACK') end
if redis.call('HGET', meta, 'cursor') ~= from then return redis.status_reply('MOVED') end

local fingerprints = {}
for i = FIRST_DATASET, #ARGV, 2 do fingerprints[ARGV[i]] = ARGV[i + 1] end
local fields, left_out, covered = redis.call('HGETALL', meta), {}, {}
for i = 1, #fields, 2 do
  local kind, name = string.match(fields[i], '^(%l+):(.*)$')
  if kind == 'pending' or kind == 'slots' or kind == 'unfilled' then
    left_out[name] = true
  elseif kind == 'rev' and not fingerprints[name] then
    left_out[name] = true
  elseif kind == 'covered' then
    covered[name] = fields[i + 1]
    if not fingerprints[name] then redis.call('HDEL', meta, fields[i]) end
  end
end
-- What was not covered, or by other triggers, may have missed changes: all its entries must be revalidated (R14).
local cause
for name, fingerprint in pairs(fingerprints) do
  if covered[name] ~= fingerprint then
    cause = cause or next_cause()
    redis.call('HSET', meta, 'covered:' .. name, fingerprint)
    make_pending(name, reason, cause)
    refuse_older_loads(name, nonce)
    left_out[name] = true
  end
end
local names = {}
for name in pairs(left_out) do names[#names + 1] = name end
table.sort(names)
local list = #names == 0 and '[]' or cjson.encode(names)
redis.call('HSET', meta, 'cursor', to)
-- Postgres answers somebody: who is cut off alone has met no outage.
redis.call('HDEL', meta, 'outage')
redis.call('SET', watermark, '{"epoch":"' .. epoch_text .. '","incarnation":"' .. incarnation .. '","snapshot":"' .. to
  .. '","as_of":"' .. as_of .. '","not_covered":' .. list .. '}')
count(job)
return redis.status_reply('DONE')
