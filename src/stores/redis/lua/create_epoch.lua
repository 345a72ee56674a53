-- A new epoch (R13), only if the head is still the one that was read.
-- KEYS: 1 head, 2 stamps, 3 tagstamps, 4 watermark, 5 fences.
-- ARGV: 1 the epoch that was read or '', 2 its incarnation or '', 3 new epoch, 4 incarnation, 5 floor, 6 cursor, 7 the debt,
--       8 'new' (the stamps are worthless) or 'relabel' (Redis went back, but its tables are whole), 9… datasets.
-- Answers CREATED, or LOST if somebody was faster.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('UNLINK', KEYS[1]) end
local epoch = redis.call('HGET', KEYS[1], 'epoch') or ''
local incarnation = redis.call('HGET', KEYS[1], 'inc') or ''
if epoch ~= ARGV[1] or incarnation ~= ARGV[2] then return 'LOST' end
if redis.call('HEXISTS', KEYS[1], 'retired:' .. ARGV[4]) == 1 then return 'RETIRED' end

local fields = redis.call('HKEYS', KEYS[1])
for _, field in ipairs(fields) do
  local dataset = string.match(field, '^rev:(.*)$')
  -- Where only Redis went back, the cursor went back with it, and the feed applies again what it covers.
  if dataset and not (ARGV[8] == 'relabel' and redis.call('HEXISTS', KEYS[1], 'covered:' .. dataset) == 1) then redis.call('HSET', KEYS[1], 'pending:' .. dataset, ARGV[7]) end
  if string.find(field, '^job:') or string.find(field, '^backfill:') or string.find(field, '^backfilled:') then redis.call('HDEL', KEYS[1], field) end
end
for i = 9, #ARGV do
  if not (ARGV[8] == 'relabel' and redis.call('HEXISTS', KEYS[1], 'covered:' .. ARGV[i]) == 1) then
    redis.call('HSET', KEYS[1], 'pending:' .. ARGV[i], ARGV[7])
  end
end
if incarnation ~= '' and incarnation ~= ARGV[4] then redis.call('HSET', KEYS[1], 'retired:' .. incarnation, 1) end

if ARGV[8] == 'relabel' then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[3])
  redis.call('SETRANGE', KEYS[2], 0, ARGV[3])
  redis.call('SETRANGE', KEYS[3], 0, ARGV[3])
else
  redis.call('HSET', KEYS[1], 'epoch', ARGV[3], 'inc', ARGV[4], 'floor', ARGV[5], 'top', ARGV[5], 'cursor', ARGV[6])
  local empty = ARGV[3] .. string.rep('\0', 1048576)
  redis.call('SET', KEYS[2], empty)
  redis.call('SET', KEYS[3], empty)
end
-- Counters that went back must not read as permission: the table begins anew, under another generation.
redis.call('SET', KEYS[5], ARGV[3])
redis.call('UNLINK', KEYS[4])
return 'CREATED'
