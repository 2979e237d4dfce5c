-- KEYS[1] value's key; ARGV[1] the damaged bytes that were seen there. Returns 1 if they were removed.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('UNLINK', KEYS[1]) end
return 0
