-- Extends entries while Postgres is down, each only as it was when it was judged.
-- KEYS: 4… the keys. ARGV: 5 new lifetime in milliseconds, 6… the remaining milliseconds that were seen, one a key.
-- Answers how many were extended. A lifetime that grew meanwhile belongs to a newer store and is left alone.
local why = gone()
if why then return why end
local extended = 0
for i = 4, #KEYS do
  local left = redis.call('PTTL', KEYS[i])
  if left >= 0 and left <= tonumber(ARGV[i + 2]) and left < tonumber(ARGV[5]) then
    extended = extended + redis.call('PEXPIRE', KEYS[i], ARGV[5])
  end
end
return extended
