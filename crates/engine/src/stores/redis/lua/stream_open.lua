-- Gives a consumer the right to take entries of a stream, and makes stream and group where they are missing. Tokens are
-- not compared: a database that was restored begins with lower ones again.
-- KEYS: 1 the token, 2 the stream. ARGV: 1 the caller's token or '', 2 group. Replies 1.
local held_token, stream, token, group = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if token ~= '' then redis.call('SET', held_token, token) end
local made = redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return redis.error_reply(made.err) end
return 1
