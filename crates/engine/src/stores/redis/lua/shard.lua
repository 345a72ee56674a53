-- Stands before every script on a shard of a cluster. Such a script reaches the keys of every cluster slot that its node serves; but only
-- keys of one cluster slot may be declared, so that the others come in an argument.
-- KEYS: those of the metadata (see the prelude).
-- ARGV: the arguments as the rest of the script knows them, and behind them, as one MessagePack list: the further keys; lists that begin with
--       what guards must say, and go on with these guards; the arguments for what is a shard's alone.
-- Replies PRECONDITION guard, and has done nothing, where a key is not this shard's, or may be at another node.
local SHARD

-- Whether what is not there may be at another node: a write to it would fail half way. What is asked for never exists.
local function is_moving(key) return type(redis.pcall('OBJECT', 'ENCODING', key .. ':never')) == 'table' end

-- Asks for so many cluster slots one by one; for more, first whether the node shows any as moving.
local ASKED_MAX = 32

local function has_moving(guards)
  local asked = #guards - 1
  if ASKED_MAX < asked then
    local told = redis.pcall('CLUSTER', 'NODES')
    if type(told) == 'string' and not string.find(told, '[', 1, true) then return false end
  end
  for i = 2, #guards do
    if is_moving(guards[i]) then return true end
  end
  return false
end

-- The keys behind those that are declared, and whether all of their cluster slots are this shard's.
local function read_shard()
  local further, guarded, of_shard = unpack(cmsgpack.unpack(ARGV[#ARGV]))
  ARGV[#ARGV] = nil
  SHARD = of_shard
  local declared, pcall = #KEYS, redis.pcall
  for i = 1, #further do KEYS[declared + i] = further[i] end
  if is_moving(KEYS[1]) then return false end
  for _, guards in ipairs(guarded) do
    local says = guards[1]
    for i = 2, #guards do
      if pcall('GET', guards[i]) ~= says then return false end
    end
    if has_moving(guards) then return false end
  end
  return true
end

if not read_shard() then return redis.status_reply('PRECONDITION guard') end
