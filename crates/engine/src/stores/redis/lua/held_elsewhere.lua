-- Which cluster slots this server holds entries of, though it does not serve them. What is left of a guard alone is no entry.
-- ARGV: pairs of the first and the last number. Replies the numbers.
local OWN_KEYS_MAX = 100
local function has_entries(slot)
  local count = redis.call('CLUSTER', 'COUNTKEYSINSLOT', slot)
  if count == 0 then return false end
  if OWN_KEYS_MAX < count then return true end
  for _, key in ipairs(redis.call('CLUSTER', 'GETKEYSINSLOT', slot, count)) do
    if string.sub(key, 1, 4) ~= 'ck:{' then return true end
  end
  return false
end
local held = {}
for i = 1, #ARGV, 2 do
  for slot = ARGV[i], ARGV[i + 1] do
    if has_entries(slot) then held[#held + 1] = slot end
  end
end
return held
