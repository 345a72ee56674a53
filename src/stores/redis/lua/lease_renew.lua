-- Renews leases, each only for its owner. KEYS: the leases. ARGV: 1 lifetime in milliseconds, 2… what each must hold.
-- Answers 1 for each that is still held, 0 for each that is lost.
local answer = {}
for i = 1, #KEYS do
  local held = redis.call('GET', KEYS[i]) == ARGV[i + 1]
  if held then redis.call('PEXPIRE', KEYS[i], ARGV[1]) end
  answer[i] = held and 1 or 0
end
return answer
