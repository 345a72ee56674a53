-- Looks at a hash.
-- KEYS: 1 the hash. ARGV: 1 the most bytes of names and values, or '' for all.
-- Replies what look_at_hash answers.
return look_at_hash(KEYS[1], ARGV[1])
