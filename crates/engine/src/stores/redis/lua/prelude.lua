-- Stands before every script that takes a stamp (DESIGN R4).
-- KEYS: 1 head, 2 stamps, 3 tagstamps. ARGV: 1 epoch, 2 incarnation, 3 dataset or '', 4 its revision.
local TABLE_BYTES = 1048584

-- Why this call may not act: the tables are not whole, or belong to another epoch, incarnation or revision.
-- An evicted table must never read as permission. Answers nil and the head if all is right.
local function gone()
  local head = redis.pcall('HMGET', KEYS[1], 'epoch', 'inc', 'floor', 'top', 'rev:' .. ARGV[3])
  if head.err or not head[1] or not head[3] or not head[4] then return 'GONE table' end
  for i = 2, 3 do
    local size = redis.pcall('STRLEN', KEYS[i])
    if size ~= TABLE_BYTES or redis.call('GETRANGE', KEYS[i], 0, 7) ~= head[1] then return 'GONE table' end
  end
  if head[1] ~= ARGV[1] then return 'GONE epoch' end
  if head[2] ~= ARGV[2] then return 'GONE incarnation' end
  if ARGV[3] ~= '' and head[5] ~= ARGV[4] then return 'GONE revision' end
  return nil, head
end

-- Stamps are two exact numbers. Lua's `<` on strings follows the collation of the server's environment.
local function less(a, b)
  local a_high, a_low = struct.unpack('>I6I2', a)
  local b_high, b_low = struct.unpack('>I6I2', b)
  return a_high < b_high or (a_high == b_high and a_low < b_low)
end

local function slot_stamp(table_key, slot)
  return redis.call('GETRANGE', table_key, 8 + slot * 8, 15 + slot * 8)
end

-- Raises one slot, never lowers it.
local function raise_slot(table_key, slot, stamp, top)
  -- Nothing is above `top`.
  if not less(stamp, top) or less(slot_stamp(table_key, slot), stamp) then
    redis.call('SETRANGE', table_key, 8 + slot * 8, stamp)
  end
end

-- `top` is at least the floor and every slot: a stamp that reaches it needs no slot looked up.
local function raise_top(top, stamp)
  if less(top, stamp) then redis.call('HSET', KEYS[1], 'top', stamp) end
end

-- One more script of a counted job (R9); '' where nothing is claimed later.
local function count(job)
  if job ~= '' then redis.call('HINCRBY', KEYS[1], 'job:' .. job, 1) end
end
