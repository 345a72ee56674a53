-- Adds the members of tags before their entries are stored, grouped by tag: one SADD for many members instead of one for each
-- entry. The stores that follow check that all of it is still there (R8).
-- KEYS: 1 to 3 see the prelude, 4 windows.
-- ARGV: 1 to 4 see the prelude, 5 job, 6 how many scripts of the job have added members, this one included, 7 prefix of tag
--       sets, 8 longest life in seconds, 9 window width in seconds, then for each tag its name, the number of its members, and
--       the members.
-- Replies [the removals so far, the window], or ROLLED_BACK if Redis lost one of the earlier scripts.
local windows, job, number, tag_prefix, longest_life, width = KEYS[4], unpack(ARGV, 5, 9)
local FIRST_TAG = 10
local failure = check_precondition()
if failure then return failure end
if (redis.call('HGET', meta, 'members:' .. job) or '0') ~= string.format('%d', number - 1) then
  return redis.status_reply('ROLLED_BACK')
end
local suffix, window = open_window(windows, longest_life, width)
local names, at = {}, FIRST_TAG
while at < #ARGV do
  local set, first, last = tag_prefix .. ARGV[at] .. suffix, at + 2, at + 1 + ARGV[at + 1]
  local added = redis.pcall('SADD', set, unpack(ARGV, first, last))
  if type(added) == 'table' then -- something else stood there, so no member did
    redis.call('UNLINK', set)
    redis.call('SADD', set, unpack(ARGV, first, last))
  end
  names[#names + 1] = ARGV[at]
  at = last + 1
end
redis.call('SADD', windows .. suffix, unpack(names))
redis.call('HSET', meta, 'members:' .. job, number)
count(job)
return { tonumber(redis.call('HGET', meta, 'removals') or 0), window }
