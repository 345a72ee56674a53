-- Takes entries of a stream for a consumer, only while the caller is the one who may (a token; '' = anybody may). One that
-- was displaced must take nothing: its successor would go on behind it, and the order would be lost.
-- KEYS: 1 the token, 2 the stream. ARGV: 1 the caller's token or '', 2 group, 3 consumer, 4 most entries,
--       5 a cursor of entries to claim, or '>' for new ones, 6 idle milliseconds of entries to claim.
-- Answers [next cursor, [[id, [field, value, …]], …]], or 'DISPLACED'.
if ARGV[1] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'DISPLACED' end
if ARGV[5] == '>' then
  local reply = redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS', KEYS[2], '>')
  return { '0-0', reply and reply[1][2] or {} }
end
local reply = redis.call('XAUTOCLAIM', KEYS[2], ARGV[2], ARGV[3], ARGV[6], ARGV[5], 'COUNT', ARGV[4])
return { reply[1], reply[2] }
