-- Raises keys, cached or not (R6), and then deletes them or answers which exist.
-- KEYS: 4… the keys. ARGV: 5 stamp, 6 'delete' or 'exists', 7 job or '', 8 the keys' slots (4 bytes each),
--       9 a tag set that loses these members, or ''.
-- Answers how many were deleted, or the positions of those that exist. A delete is carried out even where the answer
-- is GONE ….
local why, head = gone()
if not why then
  local stamp, top = ARGV[5], head[4]
  for i = 4, #KEYS do
    raise_slot(KEYS[2], struct.unpack('>I4', ARGV[8], (i - 3) * 4 - 3), stamp, top)
  end
  raise_top(top, stamp)
end
local answer
if ARGV[6] == 'delete' then
  answer = redis.call('UNLINK', unpack(KEYS, 4))
elseif not why then
  answer = {}
  for i = 4, #KEYS do
    if redis.call('EXISTS', KEYS[i]) == 1 then answer[#answer + 1] = i - 4 end
  end
end
if why then return why end
if ARGV[9] ~= '' then redis.pcall('SREM', ARGV[9], unpack(KEYS, 4)) end
count(ARGV[7])
return answer
