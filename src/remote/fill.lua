-- KEYS[1] value's key; ARGV[1] the value; ARGV[2] its life in ms. Returns 1 if it was put.
-- Over a tombstone only if the stamp contains its two transactions; over a value only if the stamp is greater by
-- (xmin, xmax, -n), an extension of the order of inclusion. Numbers are exact below 2^53. Headers are never compared
-- as strings: Lua's `<` follows the server's collation.
local function rd(k)
  local h = redis.call('GETRANGE', k, 0, 295)
  if #h < 40 or h:sub(1, 2) ~= 'P\4' then return nil end
  local a, b = struct.unpack('>I8I8', h:sub(9, 24))
  return h:sub(3, 3), a, b, h:byte(5)
end
local function has(a, b, n, h, w)
  if w < a then return true end
  if w >= b then return false end
  for i = 0, n - 1 do
    if a + struct.unpack('>I4', h:sub(41 + 4 * i, 44 + 4 * i)) == w then return false end
  end
  return true
end
local kind, a, b, n = rd(KEYS[1])
local v = ARGV[1]
local va, vb = struct.unpack('>I8I8', v:sub(9, 24))
local vn = v:byte(5)
if kind == 'T' then
  if not (va > a or (va > b and has(va, vb, vn, v, a))) then return 0 end
elseif kind == 'V' then
  if va < a or (va == a and (vb < b or (vb == b and vn >= n))) then return 0 end
end
redis.call('SET', KEYS[1], v, 'PX', ARGV[2])
return 1
