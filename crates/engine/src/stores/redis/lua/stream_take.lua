-- Takes entries of a stream for a consumer, only while the caller is the one who may (a token; '' = anybody may). One that
-- was superseded must take nothing: its successor would go on behind it, and the order would be lost.
-- KEYS: 1 the token, 2 the stream. ARGV: 1 the caller's token or '', 2 group, 3 consumer, 4 most entries, 5 most bytes,
--       6 '>' for new entries, or a cursor of entries that somebody has, 7 for how many milliseconds at least,
--       8 the bytes of the largest entry that is read: of a larger one only small fields are.
-- Replies [next cursor, [[id, [field, value, …], bytes], …]], or SUPERSEDED.
local held_token, stream = KEYS[1], KEYS[2]
local token, group, consumer, most, room, from, idle, largest = unpack(ARGV, 1, 8)
local SMALL_FIELD, SMALL_FIELDS = 1024, 32
if token ~= '' and redis.call('GET', held_token) ~= token then return redis.status_reply('SUPERSEDED') end
most, room, largest = tonumber(most), tonumber(room), tonumber(largest)

local function small_fields(fields)
  local small = {}
  for i = 1, math.min(#fields, SMALL_FIELDS), 2 do
    if #fields[i] + #fields[i + 1] <= SMALL_FIELD then
      small[#small + 1], small[#small + 2] = fields[i], fields[i + 1]
    end
  end
  return small
end

local taken, cursor = {}, from
-- One by one: an entry tells its size only when it is taken, and it may be as large as Redis allows.
repeat
  local page = {}
  if from == '>' then
    local reply = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS', stream, '>')
    page = reply and reply[1][2] or {}
    cursor = #page == 0 and '0-0' or '>'
  else
    local reply = redis.call('XAUTOCLAIM', stream, group, consumer, idle, cursor, 'COUNT', 1)
    cursor, page = reply[1], reply[2]
  end
  for _, entry in ipairs(page) do
    -- One that was deleted while somebody had it has no fields.
    if entry and entry[2] then
      local id, fields, bytes = entry[1], entry[2], 0
      for _, part in ipairs(fields) do bytes = bytes + #part end
      taken[#taken + 1] = { id, bytes <= largest and fields or small_fields(fields), bytes }
      room = room - bytes
    end
  end
until cursor == '0-0' or most <= #taken or room <= 0
return { cursor == '>' and '0-0' or cursor, taken }
