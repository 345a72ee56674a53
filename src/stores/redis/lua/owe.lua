-- Records debts (R14): datasets whose entries must be looked at again. ARGV: 5 the debt, 6… datasets.
local why = gone()
if why then return why end
for i = 6, #ARGV do redis.call('HSET', KEYS[1], 'owed:' .. ARGV[i], ARGV[5]) end
return #ARGV - 5
