-- The sets in which the members of tags are, with their sizes: [set, members, set, members, …].
-- Which windows can exist follows from the lifetimes that writers have announced (`span:<width>` = longest life), also
-- where the list of windows was evicted. Where Redis's clock was set back, windows of before lie beyond that: the list has
-- them.
local function tag_sets(metadata, windows, tag_prefix, names)
  local now, reply = tonumber(redis.call('TIME')[1]), {}
  local fields, ends = redis.call('HGETALL', metadata), {}
  for i = 1, #fields, 2 do
    local width = string.match(fields[i], '^span:(%d+)$')
    if width then
      width = tonumber(width)
      for window = (math.floor(now / width)) * width, now + fields[i + 1] + width, width do ends[window] = true end
    end
  end
  local listed = redis.pcall('ZRANGE', windows, 0, -1)
  for _, window in ipairs(listed) do ends[tonumber(window)] = true end
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
