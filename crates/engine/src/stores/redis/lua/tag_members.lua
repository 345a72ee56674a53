-- Registers keys in the sets of their tags. A set is named by the second from which no member can be alive. Redis's own
-- clock decides, so that writers whose clocks differ agree. The tags of a window stand in one set, the windows in
-- `windows`: what is over can be dropped.

-- The suffix of this moment's sets, and the window. The longest life is announced, so that an invalidation knows the windows.
local function open_window(windows, longest_life, width)
  local window = (math.floor((redis.call('TIME')[1] + longest_life) / width) + 1) * width
  local name = string.format('%d', window)
  redis.call('ZADD', windows, window, name)
  local span = redis.pcall('HGET', meta, 'span:' .. width)
  if type(span) ~= 'table' and tonumber(span or 0) < tonumber(longest_life) then
    redis.call('HSET', meta, 'span:' .. width, longest_life)
  end
  return ':' .. name, window
end

-- Adds the keys at these positions (4 bytes each), `before` which stand other KEYS, but for those that are `left_out`.
local function register_members(set, positions, before, left_out, call)
  local call, added = call or redis.pcall, 0
  if #positions == 4 then -- one member, as where every entry has a tag of its own
    local i = packed(positions, 1)
    if not left_out[i] then added = call('SADD', set, KEYS[before + i]) end
  else
    local members = {}
    for at = 1, #positions, 4 do
      local i = struct.unpack('>I4', positions, at)
      if not left_out[i] then members[#members + 1] = KEYS[before + i] end
    end
    for from = 1, #members, 4000 do
      added = call('SADD', set, unpack(members, from, math.min(from + 3999, #members)))
    end
  end
  if type(added) == 'table' then -- something else stood there, so no member did
    redis.call('UNLINK', set)
    register_members(set, positions, before, left_out, redis.call)
  end
end
