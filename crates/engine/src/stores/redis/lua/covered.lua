-- Cluster slots as ranges of numbers, such as 0-5460,5462: how a watermark names those that it covers.
local function without(ranges, dropped)
  local left = {}
  local function add(first, last)
    if first < last then
      left[#left + 1] = string.format('%d-%d', first, last)
    elseif first == last then
      left[#left + 1] = string.format('%d', first)
    end
  end
  for first, last in string.gmatch(ranges, '(%d+)%-?(%d*)') do
    local from = tonumber(first)
    last = tonumber(last) or from
    for slot = from, last do
      if dropped[slot] then
        add(from, slot - 1)
        from = slot + 1
      end
    end
    add(from, last)
  end
  return table.concat(left, ',')
end

-- Takes cluster slots out of the published watermark, which may cover them from an earlier time.
local function uncover(watermark, dropped)
  local text = redis.pcall('GET', watermark)
  if type(text) ~= 'string' then return end
  local rest = string.gsub(text, '"covers":"([%d,-]*)"', function(ranges)
    return '"covers":"' .. without(ranges, dropped) .. '"'
  end)
  redis.call('SET', watermark, rest)
end

-- The table of adopted cluster slots: the epoch, then of each whether it is 'p'ending or 's'ettled, or '\0', and the generation.
local ADOPTED_BYTES = 147464
local NOT_ADOPTED = string.rep('\0', 9)
local function adopted_at(slot) return 8 + slot * 9 end
local function is_adopted_whole(key)
  return redis.pcall('STRLEN', key) == ADOPTED_BYTES and redis.call('GETRANGE', key, 0, 7) == epoch
end
