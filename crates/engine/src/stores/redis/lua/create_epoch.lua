-- Begins an epoch (R13), only if the metadata is still what was read.
-- KEYS: 1 metadata, 2 stamps of keys, 3 stamps of tags, 4 watermark, 5 counters, 6 on a cluster the table of adopted cluster slots.
-- ARGV: 1 the epoch that was read or '', 2 its incarnation or '', 3 new epoch, 4 incarnation, 5 floor, 6 cursor,
--       7 the reason why everything is pending, 8 'new' (the stamps are worthless) or 'renew' (Redis was rolled back, but its
--       tables are whole: only the epoch's id changes) or 'uncovered' (as 'new', and no dataset was covered until now), 9 the place
--       of the new life among others or '', 10 the life of the lease of a life, 11 how long the recorded one's must have been over
--       (both in milliseconds), or '' where that is no question, 12… datasets.
-- Replies CREATED, or LOST if somebody was faster, or OTHER_LIFE while the server that Redis was filled from may still be served, or NEWER if
-- a later version of the protocol is at work.
local meta, stamps, tag_stamps, watermark, counters = unpack(KEYS, 1, 5)
local seen_epoch, seen_incarnation, epoch, incarnation, floor, cursor, reason, mode, place, life, grace = unpack(ARGV, 1, 11)
local FIRST_DATASET = 12
local SLOTS_BYTES = 1048576
local kind = redis.call('TYPE', meta).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('UNLINK', meta) end
local old_incarnation = redis.call('HGET', meta, 'inc') or ''
if (redis.call('HGET', meta, 'epoch') or '') ~= seen_epoch or old_incarnation ~= seen_incarnation then
  return redis.status_reply('LOST')
end
if VERSION < tonumber(redis.call('HGET', meta, 'version') or 0) then return redis.status_reply('NEWER') end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends, place_before = string.match(redis.call('HGET', meta, 'life') or '', '^(%d+) (.*)$')
if ends and grace ~= '' and incarnation ~= old_incarnation then
  -- A clock that was set back must not lengthen it.
  if now + life < tonumber(ends) then
    ends = now + life
    redis.call('HSET', meta, 'life', string.format('%d', ends) .. ' ' .. place_before)
  end
  if now < ends + grace then return redis.status_reply('OTHER_LIFE') end
end

local cause = redis.call('HINCRBY', meta, 'causes', 1)
-- A cursor that was rolled back together with the entries makes the feed apply again what it covers.
local function mark_pending(dataset)
  if string.find(dataset, '@', 1, true) then return end
  if mode == 'renew' and redis.call('HEXISTS', meta, 'covered:' .. dataset) == 1 then return end
  redis.call('HSET', meta, 'pending:' .. dataset, string.format('%s %d', reason, cause))
end
for _, field in ipairs(redis.call('HKEYS', meta)) do
  local kind, name = string.match(field, '^(%l+):(.*)$')
  if kind == 'rev' then mark_pending(name) end
  -- Nobody loads the entries of a former definition.
  if kind == 'former' then redis.call('HSET', meta, field, 'stale') end
  if kind == 'retired' or kind == 'job' or kind == 'members' or kind == 'backfill' or kind == 'backfilled' or kind == 'progress' then
    redis.call('HDEL', meta, field)
  end
  if kind == 'covered' and mode == 'uncovered' then redis.call('HDEL', meta, field) end
end
for i = FIRST_DATASET, #ARGV do mark_pending(ARGV[i]) end
if incarnation ~= old_incarnation then redis.call('HSET', meta, 'life', string.format('%d', now + life) .. ' ' .. place) end

if mode == 'renew' then
  redis.call('HSET', meta, 'epoch', epoch)
  redis.call('SETRANGE', stamps, 0, epoch)
  redis.call('SETRANGE', tag_stamps, 0, epoch)
else
  redis.call('HSET', meta, 'epoch', epoch, 'inc', incarnation, 'floor', floor, 'top', floor, 'cursor', cursor)
  local empty = epoch .. string.rep('\0', SLOTS_BYTES)
  redis.call('SET', stamps, empty)
  redis.call('SET', tag_stamps, empty)
end
redis.call('HSET', meta, 'version', VERSION)
local run = run_of_server()
if run == '' then redis.call('HDEL', meta, 'run') else redis.call('HSET', meta, 'run', run) end
-- Counters that were rolled back must not read as permission: the table begins anew, under another generation.
redis.call('SET', counters, epoch)
redis.call('UNLINK', watermark)
if KEYS[6] then -- every one is to be adopted again
  redis.call('SET', KEYS[6], epoch .. string.rep('\0', 147456))
  redis.call('HINCRBY', meta, 'adoptions', 1)
  redis.call('HDEL', meta, 'runs')
end
return redis.status_reply('CREATED')
