-- Adopts a dataset's revision once at a process's start (R16), by compare-and-set.
-- ARGV: 5 the revision that was seen or '', 6 the new one, 7 longest life in seconds, 8 window width in seconds, 9 the debt.
-- (ARGV 3 is '': the revision is what changes here.) ARGV 10 is the dataset. Answers ADOPTED, SAME or LOST.
local why = gone()
if why then return why end
local current = redis.call('HGET', KEYS[1], 'rev:' .. ARGV[10]) or ''
local span = 'span:' .. ARGV[8]
if tonumber(redis.call('HGET', KEYS[1], span) or 0) < tonumber(ARGV[7]) then redis.call('HSET', KEYS[1], span, ARGV[7]) end
if current == ARGV[6] then return 'SAME' end
if current ~= ARGV[5] then return 'LOST' end
redis.call('HSET', KEYS[1], 'rev:' .. ARGV[10], ARGV[6], 'pending:' .. ARGV[10], ARGV[9])
return 'ADOPTED'
