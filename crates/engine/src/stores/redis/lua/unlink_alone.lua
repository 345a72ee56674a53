-- Deletes the KEYS behind the first `before`; replies how many there were.
local function unlink_keys(before) return redis.call('UNLINK', unpack(KEYS, before + 1)) end
