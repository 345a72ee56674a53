-- Renews locks, each only for its owner. KEYS: the locks. ARGV: for each what it must hold and its lifetime in
-- milliseconds. Answers 1 for each that is still held, 0 for each that is lost.
local answer = {}
for i = 1, #KEYS do
  local held = redis.call('GET', KEYS[i]) == ARGV[2 * i - 1]
  if held then redis.call('PEXPIRE', KEYS[i], ARGV[2 * i]) end
  answer[i] = held and 1 or 0
end
return answer
