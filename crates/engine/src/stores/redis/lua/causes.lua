-- The number of one more cause that makes datasets pending (R14a). Work reads the newest number before its first
-- statement is sent, and settles only causes up to it. Numbers, not dates: a clock may go back.
local function next_cause() return redis.call('HINCRBY', meta, 'causes', 1) end

-- Makes a dataset pending by this cause, unless a later one has.
local function make_pending(name, reason, cause)
  local known = redis.call('HGET', meta, 'pending:' .. name)
  if known and tonumber(cause) < tonumber(string.match(known, ' (%d+)$') or 0) then return end
  redis.call('HSET', meta, 'pending:' .. name, string.format('%s %d', reason, cause))
end
