-- Takes all of these locks, or none.
-- KEYS: 1 the last token, 2… the locks. ARGV: 1 owner, 2 lifetime in milliseconds, 3 '1' where everybody takes them for that
--       lifetime. One that has longer to live was taken before the clock was set back, and would outlive a dead holder by as
--       much: it is cut to the lifetime, which whoever lives renews.
-- Replies [fencing token], or [0, position of a held lock, its remaining milliseconds, its holder].
-- The token is Redis's clock in microseconds, or one more than the last: it grows from holder to holder, also where the
-- clock stood or was set back, and where the last token was lost, time alone is larger.
local last_token, owner, life, is_common = KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1'

local function text_of(number) return string.format('%.0f', number) end

-- All looks come before all writes: an error half way would keep what was written.
local last = tonumber(redis.call('GET', last_token) or 0)
local now = redis.call('TIME')
local token = math.max(now[1] * 1000000 + now[2], last + 1)
local is_taken = false
-- One that is free, as most are, is taken without a look.
if #KEYS == 2 then
  is_taken = redis.call('SET', KEYS[2], text_of(token) .. ' ' .. owner, 'PX', life, 'NX')
end
if not is_taken then
  for i = 2, #KEYS do
    local holder = redis.call('GET', KEYS[i])
    -- One's own is left over from an attempt whose reply was lost.
    if holder and string.match(holder, '^%d+ (.*)$') ~= owner then
      if is_common and tonumber(life) < redis.call('PTTL', KEYS[i]) then redis.call('PEXPIRE', KEYS[i], life) end
      return { 0, i - 2, redis.call('PTTL', KEYS[i]), holder }
    end
  end
end
redis.call('SET', last_token, text_of(token))
if not is_taken then
  for i = 2, #KEYS do redis.call('SET', KEYS[i], text_of(token) .. ' ' .. owner, 'PX', life) end
end
return { token }
