-- Registers a living worker with its definitions, and decides whose definition of each dataset counts (R16): the newest one that
-- a living worker has. A newer one is taken at once. The older one is taken back only when no worker with the newer one lives, by a
-- worker that has been registered without a gap for a whole life.
-- KEYS: 1 to 3 see the prelude, 4 workers, 5 definitions, 6 the directory.
-- ARGV: 1 to 4 see the prelude (3 is '': the revisions are what changes here), 5 the worker, 6 the life of a registration in
--       milliseconds, 7 the reason why the entries of a dataset are pending whose definition changes, 8 a nonce, 9 prefix of the
--       bitmaps of pending stamp slots, 10 the place of this life of the primary among others or '', 11 the life of its lease in
--       milliseconds, 12 what the directory says of the service (JSON), then for each dataset eight: its name, its definition, the release, the serial, the longest
--       life of an entry in seconds, the width of a window in seconds, and the definition in full (JSON), or '' where the script is
--       to ask for it, and what the directory says of the dataset (JSON).
-- Replies 'restarted' and '1' alone where another run of the server has written the metadata; else a list of pairs: 'lead' and '1' where nobody is fitter to lead the feed; 'texts' and '1' where definitions in full are
-- asked for (nothing was taken then); 'took' and a name for each that was taken; then each field of the metadata that begins with
-- 'rev:' or 'former:', a former one with 'living' while a living worker has it, 'stale' where changes of it were missed, else with ''.
local workers, definitions, directory = KEYS[4], KEYS[5], KEYS[6]
local worker, life, reason, nonce, bitmaps, place, life_of_primary = ARGV[5], tonumber(ARGV[6]), unpack(ARGV, 7, 11)
local service = ARGV[12]
local FIRST_DATASET, PER_DATASET = 13, 8
local failure = check_precondition()
if failure then return failure end
local run = run_of_server()
local recorded = redis.call('HGET', meta, 'run')
if recorded and run ~= '' and recorded ~= run then return { 'restarted', '1' } end
if run ~= '' then redis.call('HSET', meta, 'run', run) end
redis.call('HSET', meta, 'version', VERSION)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local in_epoch = string.gsub(epoch, '.', function(byte) return string.format('%02x', string.byte(byte)) end)
redis.call('HSET', meta, 'life', string.format('%d', now + life_of_primary) .. ' ' .. place)

-- Who lives. A clock that was set back must not keep a dead worker alive: nobody is registered for longer than a life.
local living, since = {}, now
local found = redis.call('HGETALL', workers)
for i = 1, #found, 2 do
  local is_read, record = pcall(cjson.decode, found[i + 1])
  if not is_read or record.ends <= now then
    redis.call('HDEL', workers, found[i])
  elseif found[i] == worker then
    if record.epoch == in_epoch and record.since <= now then since = record.since end
  else
    if now + life < record.ends then
      record.ends = now + life
      redis.call('HSET', workers, found[i], cjson.encode(record))
    end
    living[#living + 1] = record.definitions
  end
end

local own, texts, lives, told = {}, {}, {}, {}
for i = FIRST_DATASET, #ARGV, PER_DATASET do
  local name, definition, release, serial, longest_life, width, text, public = unpack(ARGV, i, i + PER_DATASET - 1)
  own[name] = { definition, tonumber(release), tonumber(serial) }
  texts[name], lives[name], told[name] = text, longest_life, public
  local span = 'span:' .. width
  if tonumber(redis.call('HGET', meta, span) or 0) < tonumber(longest_life) then redis.call('HSET', meta, span, longest_life) end
end
local record = { ends = now + life, since = since, epoch = in_epoch, definitions = own }
redis.call('HSET', workers, worker, cjson.encode(record))

local function is_newer(one, other) return other[2] < one[2] or (one[2] == other[2] and other[3] < one[3]) end
local function current_of(name) return string.match(redis.call('HGET', meta, 'rev:' .. name) or '', '^%S*') end
local function field_of(name, definition) return name .. '@' .. definition end
local function is_living(name, definition)
  for _, theirs in ipairs(living) do
    if theirs[name] and theirs[name][1] == definition then return true end
  end
  return own[name] ~= nil and own[name][1] == definition
end

-- The order of a definition: the newest that a living worker gives it; what was recorded counts where none lives.
local function order_of(name, definition)
  local newest
  local function consider(theirs)
    local one = theirs[name]
    if one and one[1] == definition and (not newest or is_newer(one, newest)) then newest = one end
  end
  for _, theirs in ipairs(living) do consider(theirs) end
  consider(own)
  if newest then return newest end
  local release, serial = string.match(redis.call('HGET', meta, 'order:' .. name) or '', '^(%d+) (%d+)')
  return { definition, tonumber(release or 0), tonumber(serial or 0) }
end
local function note_order(name)
  local order = order_of(name, own[name][1])
  redis.call('HSET', meta, 'order:' .. name, string.format('%d %d', order[2], order[3]) .. ' ' .. lives[name])
end

local reply, to_take = {}, {}
local function answer(name, value) reply[#reply + 1], reply[#reply + 2] = name, value end
for name, mine in pairs(own) do
  local current, is_newest = current_of(name), true
  for _, theirs in ipairs(living) do
    if theirs[name] and theirs[name][1] ~= mine[1] and is_newer(theirs[name], mine) then is_newest = false end
  end
  if current == mine[1] then
    if redis.call('HEXISTS', definitions, field_of(name, current)) == 0 then to_take[name] = 'again' end
    note_order(name)
  elseif is_newest and (current == '' or is_newer(mine, order_of(name, current)) or (not is_living(name, current) and life <= now - since)) then
    to_take[name] = current
  end
end
local is_asking = false
for name in pairs(to_take) do is_asking = is_asking or texts[name] == '' end

if is_asking then answer('texts', '1') end
for name, current in pairs(is_asking and {} or to_take) do
  local mine, former = own[name], redis.call('HGET', definitions, field_of(name, current))
  redis.call('HSET', definitions, field_of(name, mine[1]), texts[name])
  redis.call('HDEL', meta, 'former:' .. field_of(name, mine[1]))
  if current ~= 'again' then
    -- Entries under other keys stay until the last worker that has them is gone.
    if former and cjson.decode(former).form ~= cjson.decode(texts[name]).form then
      redis.call('HSET', meta, 'former:' .. field_of(name, current), 'followed')
    elseif former then
      redis.call('HDEL', definitions, field_of(name, current))
    end
    redis.call('HSET', meta, 'rev:' .. name, mine[1])
    note_order(name)
    redis.call('HDEL', meta, 'undeclared:' .. name)
    make_pending(name, reason, next_cause())
    refuse_older_loads(name, nonce)
    answer('took', name)
  end
end

-- The directory tells of the definitions that count, in the same step in which they begin to count.
local function tell(field, text)
  if redis.call('HGET', directory, field) ~= text then redis.call('HSET', directory, field, text) end
end
tell('service', service)
for name, mine in pairs(own) do
  if current_of(name) == mine[1] then tell('dataset:' .. name, told[name]) end
end

-- What no living worker has any more leaves when its last entry has expired.
local function forget(name)
  local numbers = string.match(redis.call('HGET', meta, 'slots:' .. name) or '', '^[%d,]+') or ''
  for number in string.gmatch(numbers, '%d+') do redis.call('UNLINK', bitmaps .. name .. ':' .. number) end
  redis.call('HDEL', definitions, field_of(name, current_of(name)))
  redis.call('HDEL', directory, 'dataset:' .. name)
  for _, kind in ipairs({ 'rev', 'order', 'undeclared', 'pending', 'slots', 'unfilled', 'backfill', 'backfilled', 'covered', 'outage', 'progress', 'paused', 'longest' }) do
    redis.call('HDEL', meta, kind .. ':' .. name)
  end
end
local declared, fields = {}, redis.call('HGETALL', meta)
for _, theirs in ipairs(living) do for name in pairs(theirs) do declared[name] = true end end
for name in pairs(own) do declared[name] = true end
local current = {}
for i = 1, #fields, 2 do
  local kind, name = string.match(fields[i], '^(%l+):(.*)$')
  if kind == 'rev' then
    local undeclared = tonumber(redis.call('HGET', meta, 'undeclared:' .. name) or now)
    local longest_life = string.match(redis.call('HGET', meta, 'order:' .. name) or '', '(%d+)$')
    if declared[name] then
      current[name] = string.match(fields[i + 1], '^%S*')
      redis.call('HDEL', meta, 'undeclared:' .. name)
    elseif longest_life and tonumber(longest_life) * 1000 < now - undeclared then
      forget(name)
    else
      redis.call('HSET', meta, 'undeclared:' .. name, string.format('%d', math.min(undeclared, now)))
    end
    if redis.call('HEXISTS', meta, fields[i]) == 1 then answer(fields[i], fields[i + 1]) end
  elseif kind == 'former' then
    local of, definition = string.match(name, '^(.*)@(.*)$')
    answer(fields[i], fields[i + 1] == 'stale' and 'stale' or is_living(of, definition) and 'living' or '')
  end
end

-- Whoever has every definition that counts leads; where nobody has, anybody.
local function has_all(theirs)
  for name, definition in pairs(current) do
    if not theirs[name] or theirs[name][1] ~= definition then return false end
  end
  return true
end
local may_lead = has_all(own)
if not may_lead then
  may_lead = true
  for _, theirs in ipairs(living) do may_lead = may_lead and not has_all(theirs) end
end
answer('lead', may_lead and '1' or '')
return reply
