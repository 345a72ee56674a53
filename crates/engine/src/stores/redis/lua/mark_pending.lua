-- Records pending revalidations (R14): datasets whose entries must be loaded again and compared.
-- KEYS, ARGV: 1 to 4 see the prelude, 5 the reason, 6 the number of the cause if it has one already, or '', 7 a stamp to
--       which the floor is raised ("the whole table changed") or '', 8 a nonce where the datasets' revisions change
--       instead or '', 9 job or '', 10… datasets. Replies how many.
local reason, cause, new_floor, nonce, job = unpack(ARGV, 5, 9)
local FIRST_DATASET = 10
local failure, floor, top = check_precondition()
if failure then return failure end
if new_floor ~= '' then
  if less(floor, new_floor) then redis.call('HSET', meta, 'floor', new_floor) end
  raise_top(top, new_floor)
end
-- A number that Redis does not know any more, because it was rolled back, would never be settled.
if cause == '' or tonumber(redis.call('HGET', meta, 'causes') or 0) < tonumber(cause) then cause = next_cause() end
for i = FIRST_DATASET, #ARGV do
  make_pending(ARGV[i], reason, cause)
  if nonce ~= '' then refuse_older_loads(ARGV[i], nonce) end
end
count(job)
return #ARGV - FIRST_DATASET + 1
