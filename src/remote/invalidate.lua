-- KEYS[1] value's key; ARGV[1] transaction; ARGV[2] the tombstone's life in ms. Returns 1 if there is a tombstone now.
-- A value that contains the transaction stays. A tombstone holds the two highest transactions: with one, two writers
-- whose order of transactions is not that of their commits could leave a value that every reader refuses.
local function rd(k)
  local h = redis.call('GETRANGE', k, 0, 295)
  if #h < 40 or h:sub(1, 2) ~= 'P\4' then return nil end
  local a, b = struct.unpack('>I8I8', h:sub(9, 24))
  return h:sub(3, 3), a, b, h:byte(5), h
end
local function has(a, b, n, h, w)
  if w < a then return true end
  if w >= b then return false end
  for i = 0, n - 1 do
    if a + struct.unpack('>I4', h:sub(41 + 4 * i, 44 + 4 * i)) == w then return false end
  end
  return true
end
local kind, a, b, n, h = rd(KEYS[1])
local w = tonumber(ARGV[1])
local hi, lo = w, 0
if kind == 'V' and #h >= 40 + 4 * n and has(a, b, n, h, w) then return 0 end
if kind == 'T' then
  if w == a or w == b then return 0 end
  if w > a then
    lo = a
  else
    hi = a
    if w > b then lo = w else return 0 end
  end
end
local t = 'P\4T\0\0\0\0\0' .. struct.pack('>I8I8', hi, lo) .. string.rep('\0', 16)
local ok = redis.pcall('SET', KEYS[1], t, 'PX', ARGV[2])
-- Out of memory and nothing to evict: no value is better than an old one.
if type(ok) == 'table' and ok.err then redis.call('UNLINK', KEYS[1]) end
return 1
