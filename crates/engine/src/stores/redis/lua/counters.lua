-- Counters of invalidations: a fill without a database snapshot must find its own unchanged. The table
-- begins with a generation, so that one that was lost and made again is never taken for the old one.
local function counter(counters, position)
  local bytes = redis.call('GETRANGE', counters, position * 4, position * 4 + 3)
  return #bytes == 4 and bytes or '\0\0\0\0'
end

-- Raises the counters at these positions (4 bytes each), and begins the table where there is none.
local function raise_counters(counters, generation, positions)
  if redis.call('STRLEN', counters) < 8 then redis.call('SET', counters, generation) end
  local call = { 'BITFIELD', counters, 'OVERFLOW', 'WRAP' }
  for at = 1, #positions, 4 do
    local n = #call
    call[n + 1], call[n + 2], call[n + 3], call[n + 4] = 'INCRBY', 'u32', '#' .. string.format('%d', struct.unpack('>I4', positions, at)), 1
    if n > 6000 or at + 4 > #positions then
      redis.call(unpack(call))
      call = { 'BITFIELD', counters, 'OVERFLOW', 'WRAP' }
    end
  end
end
