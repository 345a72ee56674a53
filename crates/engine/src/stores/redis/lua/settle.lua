-- The entries of adopted cluster slots were loaded again.
-- KEYS: 1 to 3 see the prelude, 4 the table of adopted cluster slots.
-- ARGV: 1 to 4 see the prelude, 5 run of the server, 6 the generation of the adoption (8 bytes), then the numbers of the cluster slots.
-- Replies the positions that were refused: they are not pending by this adoption.
local adopted, run, generation = KEYS[4], ARGV[5], ARGV[6]
local FIRST_SLOT = 7
local failure = check_precondition()
if failure then return failure end
if not is_adopted_whole(adopted) then return failed('table') end
if run ~= run_of_server() then return failed('run') end
local refused, is_any = {}, false
for i = FIRST_SLOT, #ARGV do
  local at = adopted_at(tonumber(ARGV[i]))
  if redis.call('GETRANGE', adopted, at, at + 8) == 'p' .. generation then
    redis.call('SETRANGE', adopted, at, 's')
    is_any = true
  else
    refused[#refused + 1] = i - FIRST_SLOT
  end
end
if is_any then redis.call('HINCRBY', meta, 'adoptions', 1) end
return refused
