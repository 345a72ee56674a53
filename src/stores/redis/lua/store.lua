-- Stores or deletes entries that one load returned (R5, R7, R8), in one step.
-- KEYS: 4 windows, 5… the entries' keys.
-- ARGV: 5 stamp, 6 'slots' or 'floor' (what a store raises: its slots, or, in a pass, the floor),
--       7 prefix of tag sets, 8 longest life in seconds, 9 window width in seconds, 10 job or '', 11 progress of the
--       pass or '', 12 the keys' slots (4 bytes each), 13 number of tags,
--       then for each key its value and lifetime in milliseconds ('0': the row is gone, delete),
--       then for each tag its name, its slot and the positions of its keys (4 bytes each).
-- Answers the positions that were refused; GONE … if nothing was done.
local why, head = gone()
if why then return why end

local stamp, floor, top = ARGV[5], head[3], head[4]
local n, tags = #KEYS - 4, tonumber(ARGV[13])
local first_tag = 14 + 2 * n
local refused, any = {}, false

-- All checks come before all writes: an error half way would keep what was written.
if less(stamp, top) then
  if less(stamp, floor) then
    for i = 1, n do refused[i] = true end
    any = true
  else
    for i = 1, n do
      local slot = struct.unpack('>I4', ARGV[12], i * 4 - 3)
      if less(stamp, slot_stamp(KEYS[2], slot)) then refused[i] = true; any = true end
    end
    for t = 0, tags - 1 do
      if less(stamp, slot_stamp(KEYS[3], tonumber(ARGV[first_tag + t * 3 + 1]))) then
        local members = ARGV[first_tag + t * 3 + 2]
        for at = 1, #members, 4 do refused[struct.unpack('>I4', members, at)] = true end
        any = true
      end
    end
  end
end

if ARGV[6] == 'floor' then
  if less(floor, stamp) then redis.call('HSET', KEYS[1], 'floor', stamp) end
else
  for i = 1, n do
    if not refused[i] then
      raise_slot(KEYS[2], struct.unpack('>I4', ARGV[12], i * 4 - 3), stamp, top)
    end
  end
end
raise_top(top, stamp)

local at = 14
for i = 5, n + 4 do
  if not refused[i - 4] then
    local life = ARGV[at + 1]
    if life == '0' then
      redis.call('UNLINK', KEYS[i])
    else
      redis.call('SET', KEYS[i], ARGV[at], 'PX', life)
    end
  end
  at = at + 2
end

-- A set is named by the second from which no member can be alive. Redis's own clock decides, so that writers whose
-- clocks differ agree. The tags of a window stand in one set, the windows in KEYS[4]: what is over can be dropped.
if tags > 0 then
  local width = tonumber(ARGV[9])
  local window = (math.floor((redis.call('TIME')[1] + ARGV[8]) / width) + 1) * width
  local suffix = ':' .. string.format('%d', window)
  local names = {}
  for t = 0, tags - 1 do
    local name, packed = ARGV[first_tag + t * 3], ARGV[first_tag + t * 3 + 2]
    local set, added = ARGV[7] .. name .. suffix, 0
    if #packed == 4 then -- one member, as where every entry has a tag of its own
      local i = struct.unpack('>I4', packed)
      if not refused[i] then added = redis.pcall('SADD', set, KEYS[i + 4]) end
    else
      local members = {}
      for m = 1, #packed, 4 do
        local i = struct.unpack('>I4', packed, m)
        if not refused[i] then members[#members + 1] = KEYS[i + 4] end
      end
      for from = 1, #members, 4000 do
        added = redis.pcall('SADD', set, unpack(members, from, math.min(from + 3999, #members)))
      end
    end
    if type(added) == 'table' then -- something else stood there, so no member did
      redis.call('UNLINK', set)
      for m = 1, #packed, 4 do
        local i = struct.unpack('>I4', packed, m)
        if not refused[i] then redis.call('SADD', set, KEYS[i + 4]) end
      end
    end
    names[t % 4000 + 1] = name
    if t == tags - 1 or t % 4000 == 3999 then
      redis.call('SADD', KEYS[4] .. suffix, unpack(names, 1, t % 4000 + 1))
    end
  end
  redis.call('ZADD', KEYS[4], window, string.format('%d', window))
end

if ARGV[11] ~= '' then redis.call('HSET', KEYS[1], 'backfill:' .. ARGV[3], ARGV[11]) end
count(ARGV[10])

local answer = {}
if any then
  for i = 1, n do if refused[i] then answer[#answer + 1] = i - 1 end end
end
return answer
