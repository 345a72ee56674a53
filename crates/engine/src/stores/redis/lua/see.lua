-- Looks at entries of a shard, with what orders them, all of one moment.
-- KEYS: 1 the metadata, 2 the stamps, 3 the watermark. ARGV: 1 the most bytes of a value, or '' for all; 2 the entries, and 3 the guards
--       of their cluster slots, as MessagePack lists; 4 their stamp slots, four bytes each.
-- Replies three lists: of each entry its type, '' where nothing stands there or it is at another node; what its guard says, '' where there is
-- none; and what is seen of them: epoch and floor, the watermark, and for each entry its stamp and, of what is there, the value, of a string
-- its length, and the time to live.
local most, keys, guards = ARGV[1], cmsgpack.unpack(ARGV[2]), cmsgpack.unpack(ARGV[3])
local kinds, said = {}, {}
local seen = { redis.call('HMGET', KEYS[1], 'epoch', 'floor'), redis.call('GET', KEYS[3]) }

local function add(value) seen[#seen + 1] = value end

local function add_string(key)
  if most == '' then
    add(redis.call('GET', key))
  elseif most == '0' then
    add('')
  else
    add(redis.call('GETRANGE', key, 0, most - 1))
  end
  add(redis.call('STRLEN', key))
end

for i = 1, #keys do
  local key = keys[i]
  local at = 8 + 8 * struct.unpack('>I4', ARGV[4], 4 * i - 3)
  add(redis.call('GETRANGE', KEYS[2], at, at + 7))
  -- Asked so, whoever listens is not told that a key is missing.
  local is_there = type(redis.pcall('OBJECT', 'ENCODING', key)) == 'string'
  local kind = is_there and redis.call('TYPE', key).ok or ''
  kinds[i] = kind
  local guard = redis.pcall('GET', guards[i])
  said[i] = type(guard) == 'string' and guard or ''
  if kind == 'string' then
    add_string(key)
  elseif kind == 'hash' then
    add(look_at_hash(key, most))
  elseif is_there then
    add(kind)
  end
  if is_there then add(redis.call('PTTL', key)) end
end

return { kinds, said, seen }
