-- Ends entries of a stream that were worked off: acknowledges and removes them, replies, and keeps the rejected ones apart.
-- Whoever acknowledges an entry replies, so there is one reply however often it was worked off.
-- KEYS: 1 the stream, 2 where rejected entries are kept, 3… lists for replies.
-- ARGV: 1 group, 2 most rejected entries, 3 milliseconds that a list lives, then for each entry: its id, the number of its
--       list (0: no reply), the reply, and why it was rejected ('': it was not).
-- Answers [how many there were, [id whose reply could not be delivered, …]].
local FIELDS_MAX = 200
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'none' and kind ~= 'stream' then
  return redis.error_reply('WRONGTYPE ' .. KEYS[2] .. ' must be a stream: rejected commands are kept there')
end
local finished, undelivered = 0, {}
for i = 4, #ARGV, 4 do
  local id, list, reply, reason = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
  if redis.call('XACK', KEYS[1], ARGV[1], id) == 1 then
    finished = finished + 1
    if reason ~= '' then
      local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
      local fields = entry and entry[2] or {}
      while FIELDS_MAX < #fields do fields[#fields] = nil end
      for _, part in ipairs({ 'entry', id, 'reason', reason }) do fields[#fields + 1] = part end
      redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', unpack(fields))
    end
    redis.call('XDEL', KEYS[1], id)
    if 0 < list then
      local sent = redis.pcall('RPUSH', KEYS[2 + list], reply)
      if type(sent) == 'table' then
        undelivered[#undelivered + 1] = id
      else
        redis.call('PEXPIRE', KEYS[2 + list], ARGV[3])
      end
    end
  end
end
return { finished, undelivered }
