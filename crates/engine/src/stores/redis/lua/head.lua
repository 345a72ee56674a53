-- The head as it is (read-only unless a job is counted), and whether the tables are whole and agree with it.
-- KEYS: 1 head, 2 stamps, 3 tagstamps. ARGV: 1 a job to count or ''.
-- Answers [1 if whole else 0, the job's count, Redis's clock in milliseconds, field, value, …].
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local TABLE_BYTES = 1048584
local head = redis.pcall('HGETALL', KEYS[1])
if head.err then return { 0, 0, now } end
local epoch = redis.call('HGET', KEYS[1], 'epoch')
local whole = epoch and redis.call('HEXISTS', KEYS[1], 'floor') == 1 and redis.call('HEXISTS', KEYS[1], 'top') == 1
  and redis.call('HEXISTS', KEYS[1], 'inc') == 1 and redis.call('HEXISTS', KEYS[1], 'cursor') == 1
for i = 2, 3 do
  local size = redis.pcall('STRLEN', KEYS[i])
  whole = whole and size == TABLE_BYTES and redis.call('GETRANGE', KEYS[i], 0, 7) == epoch
end
local counted = 0
if whole and ARGV[1] ~= '' then counted = redis.call('HINCRBY', KEYS[1], 'job:' .. ARGV[1], 1) end
table.insert(head, 1, now)
table.insert(head, 1, counted)
table.insert(head, 1, whole and 1 or 0)
return head
