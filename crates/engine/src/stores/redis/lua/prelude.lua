-- Stands before every script that acts in an epoch (R4). What the caller expects to find unchanged is its precondition.
-- KEYS: 1 metadata, 2 stamps of keys, 3 stamps of tags. ARGV: 1 epoch, 2 incarnation, 3 dataset or '', 4 its revision,
-- or its definition alone where nothing is stored that was loaded before.
local meta, stamps, tag_stamps = KEYS[1], KEYS[2], KEYS[3]
local epoch, incarnation, dataset, revision = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local TABLE_BYTES = 1048584

local function failed(what) return redis.status_reply('PRECONDITION ' .. what) end

-- Answers the reply of a failed precondition, or nil, the floor and the top. A table that was evicted must never read
-- as permission, so the tables must be whole and belong to this epoch.
local function check_precondition()
  local found = redis.pcall('HMGET', meta, 'epoch', 'inc', 'floor', 'top', 'rev:' .. dataset, 'version')
  if found.err or not found[1] or not found[3] or not found[4] then return failed('table') end
  for i = 2, 3 do
    local size = redis.pcall('STRLEN', KEYS[i])
    if size ~= TABLE_BYTES or redis.call('GETRANGE', KEYS[i], 0, 7) ~= found[1] then return failed('table') end
  end
  -- Whoever has written this has rules that are not known here.
  if found[6] and VERSION < tonumber(found[6]) then return failed('version') end
  if found[1] ~= epoch then return failed('epoch') end
  if found[2] ~= incarnation then return failed('incarnation') end
  if dataset ~= '' and found[5] ~= revision then
    if string.match(found[5] or '', '^%S*') ~= string.match(revision, '^%S*') then return failed('revision') end
    if string.find(revision, ' ', 1, true) then return failed('outdated') end
  end
  return nil, found[3], found[4]
end

-- Stamps are two exact numbers. Lua's `<` on strings follows the collation of the server's environment.
local function less(a, b)
  local a_high, a_low = struct.unpack('>I6I2', a)
  local b_high, b_low = struct.unpack('>I6I2', b)
  return a_high < b_high or (a_high == b_high and a_low < b_low)
end

-- The number at a place of a list that is packed as four bytes each.
local function packed(list, place) return (struct.unpack('>I4', list, place * 4 - 3)) end

local function slot_stamp(table_key, slot)
  return redis.call('GETRANGE', table_key, 8 + slot * 8, 15 + slot * 8)
end

-- Raises one slot, never lowers it. Nothing is above `top`, so a stamp that reaches it, which is the newest, is not compared.
local function raise_slot(table_key, slot, stamp, is_newest)
  if is_newest or less(slot_stamp(table_key, slot), stamp) then
    redis.call('SETRANGE', table_key, 8 + slot * 8, stamp)
  end
end

-- `top` is at least the floor and every slot: a stamp that reaches it needs no slot looked up.
local function raise_top(top, stamp)
  if less(top, stamp) then redis.call('HSET', meta, 'top', stamp) end
end

-- One more script of a counted job (R9); '' where nothing is claimed later.
local function count(job)
  if job ~= '' then redis.call('HINCRBY', meta, 'job:' .. job, 1) end
end
