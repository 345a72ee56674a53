-- What a shard does for its cluster slots where its cursor moves. KEYS: 4 watermark, 5 the table of adopted cluster slots.
-- SHARD: 1 run of the server, 2 the runs of all servers as JSON, 3 the node's id, 4 the cluster slots that it serves, 5 how often
--        cluster slots were adopted, settled or dropped, 6 those that the watermark covers, 7 those to be dropped (4 bytes each), 8 the
--        runs of the last move, 9 the shard's number, then, where 2 and 8 differ, of each adopted cluster slot its number and its guard.

-- The cluster slots that this node serves, as ranges.
local function served_here()
  local node, ranges = redis.call('CLUSTER', 'MYID'), {}
  for _, range in ipairs(redis.call('CLUSTER', 'SLOTS')) do
    if range[3] and range[3][3] == node then ranges[#ranges + 1] = range end
  end
  table.sort(ranges, function(a, b) return a[1] < b[1] end)
  local texts = {}
  for i, range in ipairs(ranges) do
    local is_one = range[1] == range[2]
    texts[i] = is_one and string.format('%d', range[1]) or string.format('%d-%d', range[1], range[2])
  end
  return table.concat(texts, ',')
end

-- What the caller knows must be so: else the watermark would claim what is not this node's, or what the caller was not told of.
local function check_shard()
  if not is_adopted_whole(KEYS[5]) then return failed('table') end
  if SHARD[1] ~= run_of_server() then return failed('run') end
  local known = redis.call('HMGET', meta, 'adoptions', 'runs')
  local is_known = (known[1] or '0') == SHARD[5] and (known[2] or '') == SHARD[8]
  if not is_known or SHARD[4] ~= served_here() then return failed('adopted') end
end

-- Drops the cluster slots that are to be adopted again; where any server has another run than at the last move, also those whose guard
-- names another shard: a failover may have brought back an older one. Replies what the watermark says of all of them.
local function drop_cluster_slots()
  local dropped, runs, shard = {}, SHARD[2], SHARD[9]
  for at = 1, #SHARD[7], 4 do dropped[(struct.unpack('>I4', SHARD[7], at))] = true end
  if runs ~= SHARD[8] then
    for i = 10, #SHARD, 2 do
      local said = redis.pcall('GET', SHARD[i + 1])
      if type(said) ~= 'string' or string.match(said, '^%d+') ~= shard then dropped[tonumber(SHARD[i])] = true end
    end
    redis.call('HSET', meta, 'runs', runs)
  end
  if next(dropped) then
    for slot in pairs(dropped) do redis.call('SETRANGE', KEYS[5], adopted_at(slot), NOT_ADOPTED) end
    redis.call('HINCRBY', meta, 'adoptions', 1)
    uncover(KEYS[4], dropped)
  end
  return ',"covers":"' .. without(SHARD[6], dropped) .. '","node":"' .. SHARD[3] .. '","runs":' .. runs
end
