-- Deletes the KEYS behind the first `before`; replies how many there were. One command reaches no more than one cluster slot.
local function unlink_keys(before)
  local deleted = 0
  for i = before + 1, #KEYS do deleted = deleted + redis.call('UNLINK', KEYS[i]) end
  return deleted
end
