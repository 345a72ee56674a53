-- Ends entries of a stream that were worked off: acknowledges and removes them, replies, and keeps the rejected ones apart.
-- Whoever acknowledges an entry replies, so there is one reply however often it was worked off.
-- KEYS: 1 the stream, 2 where rejected entries are kept, 3… lists for replies.
-- ARGV: 1 group, 2 most rejected entries, 3 milliseconds that a new list lives, then for each entry: its id, the number of its
--       list (0: no reply), the reply, why it was rejected ('': it was not), and what is kept of it: -1 (all of its fields), or the
--       number of names and values that follow.
-- Replies [how many there were, [id whose reply could not be delivered, …]].
local stream, dead_letters = KEYS[1], KEYS[2]
local group, most_dead, life = ARGV[1], ARGV[2], ARGV[3]
local BEFORE_LISTS, FIRST_ENTRY, FIELDS_MAX = 2, 4, 200
local kind = redis.call('TYPE', dead_letters).ok
if kind ~= 'none' and kind ~= 'stream' then
  return redis.error_reply('WRONGTYPE ' .. dead_letters .. ' must be a stream: rejected commands are kept there')
end

local function fields_of(id)
  local entry = redis.call('XRANGE', stream, id, id)[1]
  return entry and entry[2] or {}
end

local function keep_apart(id, fields, reason)
  while FIELDS_MAX < #fields do fields[#fields] = nil end
  for _, part in ipairs({ 'entry', id, 'reason', reason }) do fields[#fields + 1] = part end
  redis.call('XADD', dead_letters, 'MAXLEN', '~', most_dead, '*', unpack(fields))
end

local finished, undelivered, i = 0, {}, FIRST_ENTRY
while i < #ARGV do
  local id, list, reply, reason, kept = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 4])
  local first_kept = i + 5
  i = first_kept + math.max(kept, 0)
  if redis.call('XACK', stream, group, id) == 1 then
    finished = finished + 1
    if reason ~= '' then keep_apart(id, kept < 0 and fields_of(id) or { unpack(ARGV, first_kept, i - 1) }, reason) end
    redis.call('XDEL', stream, id)
    if 0 < list then
      local sent = redis.pcall('RPUSH', KEYS[BEFORE_LISTS + list], reply)
      if type(sent) == 'table' then
        undelivered[#undelivered + 1] = id
      elseif sent == 1 then
        redis.call('PEXPIRE', KEYS[BEFORE_LISTS + list], life)
      else
        -- A list that was there keeps its own end, or that it has none.
        redis.call('PEXPIRE', KEYS[BEFORE_LISTS + list], life, 'GT')
      end
    end
  end
end
return { finished, undelivered }
