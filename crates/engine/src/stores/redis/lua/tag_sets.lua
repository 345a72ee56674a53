-- The sets in which the members of tags are, with their sizes: [set, members, set, members, …].
-- Which windows can exist follows from the lifetimes that writers have announced (`span:<width>` = longest life).
local function tag_sets(metadata, tag_prefix, names)
  local now, reply = tonumber(redis.call('TIME')[1]), {}
  local fields, ends = redis.call('HGETALL', metadata), {}
  for i = 1, #fields, 2 do
    local width = string.match(fields[i], '^span:(%d+)$')
    if width then
      width = tonumber(width)
      for window = (math.floor(now / width)) * width, now + fields[i + 1] + width, width do ends[window] = true end
    end
  end
  for _, name in ipairs(names) do
    for window in pairs(ends) do
      local set = tag_prefix .. name .. ':' .. string.format('%d', window)
      local size = redis.pcall('SCARD', set)
      if type(size) == 'number' and size > 0 then
        reply[#reply + 1] = set
        reply[#reply + 1] = size
      end
    end
  end
  return reply
end
