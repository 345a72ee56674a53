-- Which run of which server this is; '' where it does not say. A copy of the metadata names another one: it comes from a replica that
-- was promoted, or from a file that was read again, and may be older than what was there.
local function run_of_server()
  local told = redis.pcall('INFO', 'server')
  return type(told) == 'string' and string.match(told, 'run_id:(%x+)') or ''
end
