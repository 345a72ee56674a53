-- The number of one more cause that makes datasets pending (R14a). Work reads the newest number before its first
-- statement is sent, and settles only causes up to it. Numbers, not dates: a clock may go back.
local function next_cause() return redis.call('HINCRBY', meta, 'causes', 1) end

-- A former definition, whose name among the datasets that are followed is `<dataset>@<definition>` (R16).
local function is_former(name) return string.find(name, '@', 1, true) ~= nil end

-- Makes a dataset pending by this cause, unless a later one has. Nobody loads the entries of a former definition: they are to go.
local function make_pending(name, reason, cause)
  if is_former(name) then
    if redis.call('HEXISTS', meta, 'former:' .. name) == 1 then redis.call('HSET', meta, 'former:' .. name, 'stale') end
    return
  end
  local known = redis.call('HGET', meta, 'pending:' .. name)
  if known and tonumber(cause) < tonumber(string.match(known, ' (%d+)$') or 0) then return end
  redis.call('HSET', meta, 'pending:' .. name, string.format('%s %d', reason, cause))
end

-- A cause by which the query may return something else without a captured row (R14a) changes the dataset's revision: its
-- definition and a nonce. A load carries the revision read before its statement was sent, so older loads are refused. Their
-- stamps do not tell: equal stamps see the same data only where nothing of this kind happened. A nonce, not a number: a number
-- comes again after Redis was rolled back (X34).
local function refuse_older_loads(name, nonce)
  local known = redis.call('HGET', meta, 'rev:' .. name)
  if known then redis.call('HSET', meta, 'rev:' .. name, string.match(known, '^%S*') .. ' ' .. nonce) end
end
