-- Takes entries of a stream for a consumer, only while the caller is the one who may (a token; '' = anybody may). One that
-- was superseded must take nothing: its successor would go on behind it, and the order would be lost.
-- KEYS: 1 the token, 2 the stream. ARGV: 1 the caller's token or '', 2 group, 3 consumer, 4 most entries, 5 most bytes,
--       6 '>' for new entries, or a cursor of entries that somebody has, 7 for how many milliseconds at least.
-- Replies [next cursor, [[id, [field, value, …]], …]], or SUPERSEDED.
local held_token, stream = KEYS[1], KEYS[2]
local token, group, consumer, most, room, from, idle = unpack(ARGV, 1, 7)
local PAGE = 16
if token ~= '' and redis.call('GET', held_token) ~= token then return redis.status_reply('SUPERSEDED') end
most, room = tonumber(most), tonumber(room)
local taken, cursor = {}, from
-- In pages, because entries tell their size only when they are taken.
repeat
  local page, wanted = {}, math.min(PAGE, most - #taken)
  if from == '>' then
    local reply = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', wanted, 'STREAMS', stream, '>')
    page = reply and reply[1][2] or {}
    cursor = #page == 0 and '0-0' or '>'
  else
    local reply = redis.call('XAUTOCLAIM', stream, group, consumer, idle, cursor, 'COUNT', wanted)
    cursor, page = reply[1], reply[2]
  end
  for _, entry in ipairs(page) do
    -- One that was deleted while somebody had it has no fields.
    if entry and entry[2] then
      taken[#taken + 1] = entry
      for _, part in ipairs(entry[2]) do room = room - #part end
    end
  end
until cursor == '0-0' or most <= #taken or room <= 0
return { cursor == '>' and '0-0' or cursor, taken }
