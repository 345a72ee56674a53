-- Stores entries of an application: a fill (refused where something was invalidated since before it loaded) or a set
-- (which itself refuses fills that began before). Where the load carried a stamp, the stamp rule holds as well (R5).
-- KEYS: 4 fences, 5 windows, 6… the entries' keys.
-- ARGV: 5 stamp or '', 6 'fill' or 'set', 7 the generation that was seen (fill) or one for a new table (set),
--       8 prefix of tag sets, 9 longest life in seconds, 10 window width in seconds, 11 the keys' slots (4 bytes each),
--       12 their positions among the counters (4 bytes each), 13 the counters that were seen there (4 bytes each),
--       14 number of tags,
--       then for each key its value and lifetime in milliseconds ('' = no end, '0' = delete),
--       then for each tag its name, slot, position, the counter that was seen there, and the positions of its keys.
-- Answers the positions that were refused; GONE … if nothing was done.
local stamp, why, head = ARGV[5], nil, nil
if stamp ~= '' then
  why, head = gone()
  if why then return why end
end
local n, tags = #KEYS - 5, tonumber(ARGV[14])
local first_tag = 15 + 2 * n
local refused, any = {}, false
local function refuse(i) refused[i] = true; any = true end
local function refuse_members(packed)
  for at = 1, #packed, 4 do refuse(struct.unpack('>I4', packed, at)) end
end

if ARGV[6] == 'fill' then
  local is_other = redis.call('GETRANGE', KEYS[4], 0, 7) ~= ARGV[7]
  for i = 1, n do
    local position = struct.unpack('>I4', ARGV[12], i * 4 - 3)
    if is_other or word(KEYS[4], position) ~= string.sub(ARGV[13], i * 4 - 3, i * 4) then refuse(i) end
  end
  for t = 0, tags - 1 do
    local at = first_tag + t * 5
    if word(KEYS[4], tonumber(ARGV[at + 2])) ~= ARGV[at + 3] then refuse_members(ARGV[at + 4]) end
  end
end
if stamp ~= '' then
  for i = 1, n do
    if less(stamp, head[3]) or less(stamp, slot_stamp(KEYS[2], struct.unpack('>I4', ARGV[11], i * 4 - 3))) then refuse(i) end
  end
  for t = 0, tags - 1 do
    local at = first_tag + t * 5
    if less(stamp, slot_stamp(KEYS[3], tonumber(ARGV[at + 1]))) then refuse_members(ARGV[at + 4]) end
  end
  for i = 1, n do
    if not refused[i] then raise_slot(KEYS[2], struct.unpack('>I4', ARGV[11], i * 4 - 3), stamp, head[4]) end
  end
  raise_top(head[4], stamp)
end
if ARGV[6] == 'set' then raise_fences(KEYS[4], ARGV[7], ARGV[12]) end

for i = 1, n do
  if not refused[i] then
    local value, life = ARGV[13 + 2 * i], ARGV[14 + 2 * i]
    if life == '' then
      redis.call('SET', KEYS[i + 5], value)
    elseif life == '0' then
      redis.call('UNLINK', KEYS[i + 5])
    else
      redis.call('SET', KEYS[i + 5], value, 'PX', life)
    end
  end
end

-- Sets are named as store.lua names them; the longest life is announced, so that an invalidation knows the windows.
if tags > 0 then
  local width = tonumber(ARGV[10])
  local window = (math.floor((redis.call('TIME')[1] + ARGV[9]) / width) + 1) * width
  local suffix = ':' .. string.format('%d', window)
  for t = 0, tags - 1 do
    local at = first_tag + t * 5
    local set, packed = ARGV[8] .. ARGV[at] .. suffix, ARGV[at + 4]
    for m = 1, #packed, 4 do
      local i = struct.unpack('>I4', packed, m)
      if not refused[i] and ARGV[14 + 2 * i] ~= '0' then
        local added = redis.pcall('SADD', set, KEYS[i + 5])
        if type(added) == 'table' then -- something else stood there
          redis.call('UNLINK', set)
          redis.call('SADD', set, KEYS[i + 5])
        end
      end
    end
    redis.call('SADD', KEYS[5] .. suffix, ARGV[at])
  end
  redis.call('ZADD', KEYS[5], window, string.format('%d', window))
  local span = 'span:' .. ARGV[10]
  if tonumber(redis.call('HGET', KEYS[1], span) or 0) < tonumber(ARGV[9]) then redis.call('HSET', KEYS[1], span, ARGV[9]) end
end

local answer = {}
if any then
  for i = 1, n do if refused[i] then answer[#answer + 1] = i - 1 end end
end
return answer
