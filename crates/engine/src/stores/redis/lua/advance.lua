-- Moves the cursor, and with it the watermark (R12): every change up to the new cursor is in this Redis.
-- KEYS: 1 to 3 see the prelude, 4 watermark.
-- ARGV: 1 to 4 see the prelude, 5 job, 6 the count the job knows, 7 the cursor it read from, 8 the new one, 9 the watermark's time,
--       or '' where the cursor moves alone, 10 why a dataset is pending that was not covered until now, 11 the same for one that
--       is not covered any more, 12 epoch as text, 13 a nonce, 14 '1' where the cursor is not to pass changes of a former definition
--       that is not followed (yet), then for each dataset that is followed four: its name, the
--       definition by which it is followed (where another one is registered it is not), the coverage fingerprint that was
--       verified at the new cursor (it says nothing where the cursor moves alone), or '' where that is not known yet, and one
--       that it takes the place of although nothing needs to be revalidated, or ''.
-- Replies DONE, PENDING where it is done and something became pending, or ROLLED_BACK if Redis lost scripts of the job, or MOVED if somebody else moved the cursor, or
-- UNFOLLOWED if a former definition is not followed.
local watermark = KEYS[4]
local job, known, from, to, as_of, newly, no_longer, epoch_text, nonce, waits = unpack(ARGV, 5, 14)
local FIRST_DATASET = 15
local failure = check_precondition()
if failure then return failure end
if redis.call('HGET', meta, 'job:' .. job) ~= known then return redis.status_reply('ROLLED_BACK') end
if redis.call('HGET', meta, 'cursor') ~= from then return redis.status_reply('MOVED') end
failure = check_shard()
if failure then return failure end

local followed, replaced, left_out, recorded, former = {}, {}, {}, {}, {}
for i = FIRST_DATASET, #ARGV, 4 do
  local name, definition, fingerprint = unpack(ARGV, i, i + 2)
  -- Whoever follows by an older definition may not know of every table that the registered one reads (R16).
  if string.match(redis.call('HGET', meta, 'rev:' .. name) or definition, '^%S*') == definition then
    followed[name], replaced[name] = fingerprint, ARGV[i + 3]
    if fingerprint == '' then left_out[name] = true end
  end
end
local fields = redis.call('HGETALL', meta)
for i = 1, #fields, 2 do
  local kind, name = string.match(fields[i], '^(%l+):(.*)$')
  local is_pending = kind == 'pending' or kind == 'slots' or kind == 'unfilled'
  if is_pending or (kind == 'rev' and not followed[name]) then
    left_out[name] = true
  elseif kind == 'covered' then
    recorded[name] = fields[i + 1]
  elseif kind == 'former' then
    former[name] = fields[i + 1]
    if fields[i + 1] ~= 'stale' and not followed[name] and waits ~= '' then return redis.status_reply('UNFOLLOWED') end
  end
end
for name in pairs(followed) do
  -- Nothing is left of it, which whoever leads does not know yet.
  if is_former(name) and not former[name] then followed[name] = nil end
end

local cause
local function revalidate(name, reason)
  -- One that nothing is left of is no dataset any more.
  if is_former(name) and not former[name] then return end
  cause = cause or next_cause()
  make_pending(name, reason, cause)
  refuse_older_loads(name, nonce)
  -- People know the dataset; what is called `<dataset>@<definition>` nobody does.
  left_out[string.match(name, '^[^@]*')] = true
end
-- As `Fingerprint::is_unchanged_since`: versions alone or files alone are no change.
local function is_unchanged(before, now)
  local matters_before, versions_before, files_before = string.match(before or '', '^(%S+) (%S+) (%S+)$')
  local matters, versions, files = string.match(now, '^(%S+) (%S+) (%S+)$')
  return matters and matters == matters_before and (versions == versions_before or files == files_before)
end
-- What this move does not follow, or what has other triggers, columns or views than before, may have missed changes: all its
-- entries must be revalidated (R14).
for name, state in pairs(former) do
  if state == 'stale' or not followed[name] then revalidate(name) end
end
for name in pairs(recorded) do
  if not followed[name] then
    redis.call('HDEL', meta, 'covered:' .. name)
    revalidate(name, no_longer)
  end
end
redis.call('HSET', meta, 'cursor', to)
local of_cluster_slots = drop_cluster_slots()
-- Postgres answers somebody: who is cut off alone has met no outage.
redis.call('HDEL', meta, 'outage')
if as_of ~= '' then
  for name, fingerprint in pairs(followed) do
    if fingerprint ~= '' then
      local is_new_former = former[name] and not recorded[name]
      local is_known = is_new_former or is_unchanged(recorded[name], fingerprint) or is_unchanged(recorded[name], replaced[name])
      if not is_known then revalidate(name, newly) end
      if recorded[name] ~= fingerprint then redis.call('HSET', meta, 'covered:' .. name, fingerprint) end
    end
  end
  local names = {}
  for name in pairs(left_out) do names[#names + 1] = name end
  table.sort(names)
  local list = #names == 0 and '[]' or cjson.encode(names)
  redis.call('SET', watermark, '{"epoch":"' .. epoch_text .. '","incarnation":"' .. incarnation .. '","snapshot":"' .. to
    .. '","as_of":"' .. as_of .. '","not_covered":' .. list .. of_cluster_slots .. '}')
end
count(job)
return redis.status_reply(cause and 'PENDING' or 'DONE')
