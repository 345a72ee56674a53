-- One page of a walk over the entries in Redis, as a counted step (X22).
-- ARGV: 5 job or '', 6 cursor, 7 page size, 8 how to tell use: 'idle', 'freq', or '' (tell nothing),
--       then pairs of an entry's prefix and the remaining milliseconds up to which such an entry is wanted ('' = any).
-- Answers [cursor, key, remaining milliseconds, idle seconds or frequency, key, …]. PTTL and OBJECT do not count as use.
local why = gone()
if why then return why end
local page = redis.call('SCAN', ARGV[6], 'COUNT', ARGV[7])
local answer = { page[1] }
for _, key in ipairs(page[2]) do
  local left
  for i = 9, #ARGV, 2 do
    local prefix, upto = ARGV[i], ARGV[i + 1]
    if string.sub(key, 1, #prefix) == prefix then
      left = left or redis.call('PTTL', key)
      if left ~= -2 and (upto == '' or left <= tonumber(upto)) then
        local use = -1
        if ARGV[8] ~= '' then
          local seen = redis.pcall('OBJECT', ARGV[8] == 'freq' and 'FREQ' or 'IDLETIME', key)
          if type(seen) == 'number' then use = seen end
        end
        answer[#answer + 1] = key
        answer[#answer + 1] = left
        answer[#answer + 1] = use
        -- Another dataset may share the beginning and want the key for itself: the caller tells them apart.
        break
      end
    end
  end
end
count(ARGV[5])
return answer
