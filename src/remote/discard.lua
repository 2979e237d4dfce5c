-- KEYS[1] value's key; ARGV[1] what the damaged bytes that were seen there begin with. Returns 1 if they were removed.
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) == ARGV[1] then return redis.call('UNLINK', KEYS[1]) end
return 0
