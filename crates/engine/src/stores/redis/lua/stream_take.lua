-- Takes entries of a stream for a consumer, only while the caller is the one who may (a token; '' = anybody may). One that
-- was displaced must take nothing: its successor would go on behind it, and the order would be lost.
-- KEYS: 1 the token, 2 the stream. ARGV: 1 the caller's token or '', 2 group, 3 consumer, 4 most entries, 5 most bytes,
--       6 '>' for new entries, or a cursor of entries that somebody has, 7 for how many milliseconds at least.
-- Answers [next cursor, [[id, [field, value, …]], …]], or 'DISPLACED'.
local PAGE = 16
if ARGV[1] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'DISPLACED' end
local most, room, cursor = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local taken = {}
-- In pages, because entries tell their size only when they are taken.
repeat
  local page, count = {}, math.min(PAGE, most - #taken)
  if ARGV[6] == '>' then
    local reply = redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', count, 'STREAMS', KEYS[2], '>')
    page = reply and reply[1][2] or {}
    cursor = #page == 0 and '0-0' or '>'
  else
    local reply = redis.call('XAUTOCLAIM', KEYS[2], ARGV[2], ARGV[3], ARGV[7], cursor, 'COUNT', count)
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
