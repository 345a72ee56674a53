-- Stores entries, or deletes those whose rows are gone, in one step. One rule decides for all who store (R5): what was
-- loaded at a snapshot carries its stamp; what was loaded otherwise must find its counters unchanged; a set has
-- neither, and moves the counters.
-- KEYS: 1 to 3 see the prelude, 4 windows, 5 counters, 6… the entries' keys.
-- ARGV: 1 to 4 see the prelude (without a stamp they are not looked at), 5 stamp or '',
--       6 what covers the entries: 'slots', or 'floor' in a backfill (R7),
--       7 the counters: '' (not looked at), 'unchanged' (else refused) or 'raise', 8 their generation,
--       9 prefix of tag sets, 10 longest life in seconds, 11 window width in seconds,
--       12 job or '', 13 progress of the backfill or '',
--       14 slots of the keys, 15 their positions among the counters, 16 the counters that were seen there,
--       17 slots of the tags, 18 their positions among the counters, 19 the counters that were seen there
--       (lists of 4 bytes each; 15, 16, 18 and 19 are '' where the counters are not looked at),
--       20 '' where this script adds the members of the tags; else they were added before, and no tags follow: how many scripts
--       of the job had added members by then, 21 the removals that were counted then, 22 the window,
--       23 as what the values are stored: '' (strings) or 'hash' (each value is a MessagePack list of names and values in turn),
--       then for each key its value and lifetime in milliseconds ('' = no end; '0' = the row is gone, delete),
--       then for each tag its name and the positions of its keys (4 bytes each).
-- Replies with the positions that were refused; PRECONDITION members where members that were added before may be missing, or
-- one of the tags has changed: nothing was done then, and the same is asked for without 20.
local windows, counters = KEYS[4], KEYS[5]
local stamp, covered_by, counting, generation, tag_prefix, longest_life, width, job, progress,
  slots, positions, seen, tag_slots, tag_positions, tag_seen, added, removals, window, shape = unpack(ARGV, 5, 23)
local BEFORE_KEYS, FIRST_VALUE = 5, 24
local n = #KEYS - BEFORE_KEYS
local FIRST_TAG = FIRST_VALUE + 2 * n
local tags = (#ARGV - FIRST_TAG + 1) / 2

-- Positions that nothing may be stored for; `left_out` also holds those that are deleted.
local refused, left_out, any = {}, {}, false
local function refuse(i) refused[i], left_out[i], any = true, true, true end
local function refuse_members(tag)
  local members = ARGV[FIRST_TAG + tag * 2 - 1]
  for at = 1, #members, 4 do refuse((struct.unpack('>I4', members, at))) end
end

-- R5, R8: nothing older than the floor, the key's slot or the slot of one of its tags. None of them is above `top`.
local function refuse_older(floor, top)
  if not less(stamp, top) then return end
  local is_below_floor = less(stamp, floor)
  for i = 1, n do
    if is_below_floor or less(stamp, slot_stamp(stamps, packed(slots, i))) then refuse(i) end
  end
  for tag = 1, tags do
    if less(stamp, slot_stamp(tag_stamps, packed(tag_slots, tag))) then refuse_members(tag) end
  end
end

-- R8: what an earlier script has added counts only while it is there: Redis was not rolled back since (X37), no member was
-- removed (X38), no entry outlives the window (X39), and no tag was raised above the stamp (K15).
local function has_lost_members(top)
  local found = redis.call('HMGET', meta, 'members:' .. job, 'removals')
  if tonumber(found[1] or 0) < tonumber(added) or (found[2] or '0') ~= removals then return true end
  if tonumber(window) < redis.call('TIME')[1] + longest_life then return true end
  if less(stamp, top) then
    for tag = 1, #tag_slots / 4 do
      if less(stamp, slot_stamp(tag_stamps, packed(tag_slots, tag))) then return true end
    end
  end
  return false
end

-- Nothing whose key or tag was invalidated since the counters were seen.
local function refuse_moved()
  local is_other = redis.call('GETRANGE', counters, 0, 7) ~= generation
  for i = 1, n do
    if is_other or counter(counters, packed(positions, i)) ~= string.sub(seen, i * 4 - 3, i * 4) then refuse(i) end
  end
  for tag = 1, tags do
    if counter(counters, packed(tag_positions, tag)) ~= string.sub(tag_seen, tag * 4 - 3, tag * 4) then
      refuse_members(tag)
    end
  end
end

-- R7: a script that writes values raises what covers them itself.
local function cover(floor, top)
  if covered_by == 'floor' then
    if less(floor, stamp) then redis.call('HSET', meta, 'floor', stamp) end
  else
    local is_newest = not less(stamp, top)
    for i = 1, n do
      if not refused[i] then raise_slot(stamps, packed(slots, i), stamp, is_newest) end
    end
  end
  raise_top(top, stamp)
end

-- What is to be stored as hashes, read before anything is written: what cannot be read must not be found half way. Postgres has at
-- most 1,664 columns in a row, so that one call takes all fields of an entry.
local function read_hashes()
  local hashes = {}
  for i = 1, n do
    local value, life = ARGV[FIRST_VALUE + 2 * i - 2], ARGV[FIRST_VALUE + 2 * i - 1]
    if life ~= '0' and not refused[i] then
      local fields = cmsgpack.unpack(value)
      if type(fields) ~= 'table' or #fields == 0 or #fields % 2 ~= 0 or 4000 < #fields then
        return nil, redis.error_reply('ERR a value is no list of names and values')
      end
      hashes[i] = fields
    end
  end
  return hashes
end

-- The whole entry is replaced: no field of an older row stays, whatever stood there.
local function write_hashes(hashes)
  local call = redis.call
  for i = 1, n do
    local key, life = KEYS[BEFORE_KEYS + i], ARGV[FIRST_VALUE + 2 * i - 1]
    if not refused[i] then
      call('UNLINK', key)
      if life == '0' then
        left_out[i] = true
      else
        call('HSET', key, unpack(hashes[i]))
        if life ~= '' then call('PEXPIRE', key, life) end
      end
    end
  end
end

local function write_values()
  local call, at = redis.call, FIRST_VALUE
  for i = 1, n do
    if not refused[i] then
      local life = ARGV[at + 1]
      if life == '0' then
        left_out[i] = true
        call('UNLINK', KEYS[BEFORE_KEYS + i])
      elseif life == '' then
        call('SET', KEYS[BEFORE_KEYS + i], ARGV[at])
      else
        call('SET', KEYS[BEFORE_KEYS + i], ARGV[at], 'PX', life)
      end
    end
    at = at + 2
  end
end

local function register_tags()
  local suffix, names = open_window(windows, longest_life, width), {}
  for tag = 1, tags do
    local name = ARGV[FIRST_TAG + tag * 2 - 2]
    register_members(tag_prefix .. name .. suffix, ARGV[FIRST_TAG + tag * 2 - 1], BEFORE_KEYS, left_out)
    names[#names + 1] = name
    if tag == tags or #names == 4000 then
      redis.call('SADD', windows .. suffix, unpack(names))
      names = {}
    end
  end
end

-- All checks come before all writes: an error half way would keep what was written.
local failure, floor, top
if stamp ~= '' then
  failure, floor, top = check_precondition()
  if failure then return failure end
  if added ~= '' and has_lost_members(top) then return failed('members') end
  refuse_older(floor, top)
end
if counting == 'unchanged' then refuse_moved() end
local hashes, unreadable
if shape == 'hash' then
  hashes, unreadable = read_hashes()
  if unreadable then return unreadable end
end

if stamp ~= '' then cover(floor, top) end
if counting == 'raise' then raise_counters(counters, generation, positions) end
if hashes then write_hashes(hashes) else write_values() end
if 0 < tags then register_tags() end
if progress ~= '' then redis.call('HSET', meta, 'backfill:' .. dataset, progress) end
count(job)

local answer = {}
if any then
  for i = 1, n do if refused[i] then answer[#answer + 1] = i - 1 end end
end
return answer
