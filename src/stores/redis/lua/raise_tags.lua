-- Raises tags and answers the sets in which their members stand (R8: raise first, then enumerate).
-- ARGV: 5 stamp, 6 job, 7 prefix of tag sets, then for each tag its name and slot.
-- Answers [set, members, set, members, …].
local why, head = gone()
if why then return why end
local stamp, top = ARGV[5], head[4]
for i = 8, #ARGV, 2 do raise_slot(KEYS[3], tonumber(ARGV[i + 1]), stamp, top) end
raise_top(top, stamp)

-- Which windows can exist follows from the lifetimes that writers have announced (`span:<width>` = longest life).
local now, answer = tonumber(redis.call('TIME')[1]), {}
local head_fields = redis.call('HGETALL', KEYS[1])
local ends = {}
for i = 1, #head_fields, 2 do
  local width = string.match(head_fields[i], '^span:(%d+)$')
  if width then
    width = tonumber(width)
    for window = (math.floor(now / width)) * width, now + head_fields[i + 1] + width, width do ends[window] = true end
  end
end
for i = 8, #ARGV, 2 do
  for window in pairs(ends) do
    local set = ARGV[7] .. ARGV[i] .. ':' .. string.format('%d', window)
    local size = redis.pcall('SCARD', set)
    if type(size) == 'number' and size > 0 then
      answer[#answer + 1] = set
      answer[#answer + 1] = size
    end
  end
end
count(ARGV[6])
return answer
