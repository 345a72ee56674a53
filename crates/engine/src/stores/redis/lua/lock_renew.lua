-- Renews locks, each only for its owner.
-- KEYS: the locks. ARGV: for each what it must hold and its lifetime in milliseconds.
-- Replies 1 for each that is still held, 0 for each that is lost.
local reply = {}
for i = 1, #KEYS do
  local content, life = ARGV[2 * i - 1], ARGV[2 * i]
  local is_held = redis.call('GET', KEYS[i]) == content
  if is_held then redis.call('PEXPIRE', KEYS[i], life) end
  reply[i] = is_held and 1 or 0
end
return reply
