-- Gives cluster slots to the shard: their guards name it, and it has their entries loaded again.
-- KEYS: 1 to 3 see the prelude, 4 watermark, 5 the table of adopted cluster slots.
-- ARGV: 1 to 4 see the prelude, 5 run of the server, 6 what the guards will say, 7 the generation (8 bytes), then for each cluster slot its
--       number and its guard.
-- Replies the positions that were refused: the node does not serve the cluster slot, or it is moving.
local watermark, adopted = KEYS[4], KEYS[5]
local run, says, generation = unpack(ARGV, 5, 7)
local FIRST_SLOT = 8
local failure = check_precondition()
if failure then return failure end
if not is_adopted_whole(adopted) then return failed('table') end
if run ~= run_of_server() then return failed('run') end
local refused, taken = {}, {}
for i = FIRST_SLOT, #ARGV, 2 do
  if is_moving(ARGV[i + 1]) then refused[#refused + 1] = (i - FIRST_SLOT) / 2 else taken[tonumber(ARGV[i])] = ARGV[i + 1] end
end
if next(taken) then
  uncover(watermark, taken)
  for slot, guard in pairs(taken) do
    redis.call('SET', guard, says)
    redis.call('SETRANGE', adopted, adopted_at(slot), 'p' .. generation)
  end
  redis.call('HINCRBY', meta, 'adoptions', 1)
end
return refused
