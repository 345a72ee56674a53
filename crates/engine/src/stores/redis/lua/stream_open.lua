-- Gives a consumer the right to take entries of a stream, and makes stream and group where they are missing. Not ordered by
-- the token: a database that was restored begins with lower ones again.
-- KEYS: 1 the token, 2 the stream. ARGV: 1 the caller's token or '', 2 group.
if ARGV[1] ~= '' then redis.call('SET', KEYS[1], ARGV[1]) end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[2], '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return redis.error_reply(made.err) end
return 1
