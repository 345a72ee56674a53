-- Registers a dataset's definition once at a process's start (R16), by compare-and-set, and announces its longest life.
-- KEYS, ARGV: 1 to 4 see the prelude (3 is '': the revision is what changes here), 5 the definition that was seen or '',
--       6 the new one, 7 longest life in seconds, 8 window width in seconds, 9 the reason why its entries are pending, 10 the dataset, 11 a nonce.
-- Replies REGISTERED, SAME or LOST.
local seen, new, longest_life, width, reason, registered, nonce = unpack(ARGV, 5, 11)
local failure = check_precondition()
if failure then return failure end

local current = string.match(redis.call('HGET', meta, 'rev:' .. registered) or '', '^%S*')
local span = 'span:' .. width
if tonumber(redis.call('HGET', meta, span) or 0) < tonumber(longest_life) then redis.call('HSET', meta, span, longest_life) end
if current == new then return redis.status_reply('SAME') end
if current ~= seen then return redis.status_reply('LOST') end
redis.call('HSET', meta, 'rev:' .. registered, new)
make_pending(registered, reason, next_cause())
refuse_older_loads(registered, nonce)
return redis.status_reply('REGISTERED')
