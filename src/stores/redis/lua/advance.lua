-- Moves the cursor and, with it, the watermark (R12): every change up to the new cursor is in this Redis.
-- KEYS: 4 watermark. ARGV: 5 job, 6 the count the job knows, 7 the cursor it read from, 8 the new one, 9 as_of,
--       10 the debt of a dataset that the feed did not follow until now, 11 epoch as text,
--       then pairs of a dataset that is followed and the mark of what it is followed by.
-- Answers 'DONE', or 'BACK' if Redis went back since the job began, or 'MOVED' if somebody else moved the cursor.
local why = gone()
if why then return why end
if redis.call('HGET', KEYS[1], 'job:' .. ARGV[5]) ~= ARGV[6] then return 'BACK' end
if redis.call('HGET', KEYS[1], 'cursor') ~= ARGV[7] then return 'MOVED' end

local followed = {}
for i = 12, #ARGV, 2 do followed[ARGV[i]] = ARGV[i + 1] end
local fields, left_out = redis.call('HGETALL', KEYS[1]), {}
local fed = {}
for i = 1, #fields, 2 do
  local kind, dataset = string.match(fields[i], '^(%l+):(.*)$')
  if kind == 'pending' then
    left_out[dataset] = true
  elseif kind == 'rev' and not followed[dataset] then
    left_out[dataset] = true
  elseif kind == 'covered' then
    fed[dataset] = fields[i + 1]
    if not followed[dataset] then redis.call('HDEL', KEYS[1], fields[i]) end
  end
end
-- What was not followed, or by other triggers, may have missed changes: all its entries are looked at again (R14).
for dataset, mark in pairs(followed) do
  if fed[dataset] ~= mark then
    redis.call('HSET', KEYS[1], 'covered:' .. dataset, mark, 'pending:' .. dataset, ARGV[10])
    left_out[dataset] = true
  end
end
local names = {}
for dataset in pairs(left_out) do names[#names + 1] = dataset end
table.sort(names)
local list = #names == 0 and '[]' or cjson.encode(names)
redis.call('HSET', KEYS[1], 'cursor', ARGV[8])
redis.call('SET', KEYS[4], '{"epoch":"' .. ARGV[11] .. '","incarnation":"' .. ARGV[2] .. '","snapshot":"' .. ARGV[8]
  .. '","as_of":"' .. ARGV[9] .. '","not_covered":' .. list .. '}')
count(ARGV[5])
return 'DONE'
