-- Records debts (R14): datasets whose entries must be looked at again.
-- ARGV: 5 the debt, 6 a stamp to which the floor is raised ("the whole table changed") or '', 7 job or '', 8… datasets.
local why, head = gone()
if why then return why end
if ARGV[6] ~= '' then
  if less(head[3], ARGV[6]) then redis.call('HSET', KEYS[1], 'floor', ARGV[6]) end
  raise_top(head[4], ARGV[6])
end
for i = 8, #ARGV do redis.call('HSET', KEYS[1], 'pending:' .. ARGV[i], ARGV[5]) end
count(ARGV[7])
return #ARGV - 7
