-- Records pending revalidations (R14): datasets whose entries must be loaded again and compared.
-- KEYS, ARGV: 1 to 4 see the prelude, 5 the pending revalidation, 6 a stamp to which the floor is raised ("the whole
--       table changed") or '', 7 job or '', 8… datasets. Replies how many.
local pending, new_floor, job = ARGV[5], ARGV[6], ARGV[7]
local FIRST_DATASET = 8
local failure, floor, top = check_precondition()
if failure then return failure end
if new_floor ~= '' then
  if less(floor, new_floor) then redis.call('HSET', meta, 'floor', new_floor) end
  raise_top(top, new_floor)
end
for i = FIRST_DATASET, #ARGV do redis.call('HSET', meta, 'pending:' .. ARGV[i], pending) end
count(job)
return #ARGV - FIRST_DATASET + 1
