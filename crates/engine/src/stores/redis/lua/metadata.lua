-- The metadata as it is (read-only unless a job is counted), and whether the tables are whole and agree with it.
-- KEYS: 1 metadata, 2 stamps of keys, 3 stamps of tags, 4 on a cluster the table of adopted cluster slots. ARGV: 1 a job to count or ''.
-- Replies [1 if whole else 0, the job's count, Redis's clock in milliseconds, field, value, …].
local meta, job = KEYS[1], ARGV[1]
local TABLE_BYTES = 1048584
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = redis.pcall('HGETALL', meta)
if reply.err then return { 0, 0, now } end
local epoch = redis.call('HGET', meta, 'epoch')
local whole = epoch
for _, field in ipairs({ 'inc', 'floor', 'top', 'cursor' }) do
  whole = whole and redis.call('HEXISTS', meta, field) == 1
end
for i = 2, 3 do
  local size = redis.pcall('STRLEN', KEYS[i])
  whole = whole and size == TABLE_BYTES and redis.call('GETRANGE', KEYS[i], 0, 7) == epoch
end
if KEYS[4] then
  whole = whole and redis.pcall('STRLEN', KEYS[4]) == 147464 and redis.call('GETRANGE', KEYS[4], 0, 7) == epoch
end
local counted = 0
if whole and job ~= '' then counted = redis.call('HINCRBY', meta, 'job:' .. job, 1) end
table.insert(reply, 1, now)
table.insert(reply, 1, counted)
table.insert(reply, 1, whole and 1 or 0)
return reply
