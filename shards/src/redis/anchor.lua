-- Where a stream stands, and the epoch of its numbers.
--
-- The number of an entry is how many entries had been added to its stream with it (`entries-added`, Redis 7.0), so all nodes
-- agree on it. The epoch says of which run of numbers: it lies beside the stream, with the number and the id that the newest
-- entry had when somebody last looked. Where the stream can't have gone on from there, it is another one, or was set back
-- (DEL, XSETID, a failover to a replica that lacked the end), and the epoch is new.
--
-- KEYS[1]: the stream. KEYS[2]: its epoch. ARGV: an epoch to be used if a new one is due; seconds that the epoch is kept, and
-- that it is where nothing was ever appended (anybody may ask for a room of any name); the number and the id of the newest
-- entry that the caller has read under the epoch after it, empty where it has none.
-- Returns epoch, entries added, length, id of the first entry, of the newest, of the newest that was deleted. Entries added
-- is -1 where Redis doesn't count them.
local info = {length = 0, ['entries-added'] = 0, ['last-generated-id'] = '0-0', ['max-deleted-entry-id'] = '0-0',
  ['recorded-first-entry-id'] = '0-0'}
if redis.call('EXISTS', KEYS[1]) == 1 then
  info['entries-added'] = -1
  local found = redis.call('XINFO', 'STREAM', KEYS[1])
  for at = 1, #found, 2 do info[found[at]] = found[at + 1] end
end
local added, length, last = info['entries-added'], info.length, info['last-generated-id']
local first, deleted = info['recorded-first-entry-id'], info['max-deleted-entry-id']

-- Ids have 64-bit numbers, of which Lua's hold 53 bits: they are compared as text.
local function is_less(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end
local function is_before(a, b)
  local a_millis, a_sequence = string.match(a, '^(%d+)-(%d+)$')
  local b_millis, b_sequence = string.match(b, '^(%d+)-(%d+)$')
  if a_millis ~= b_millis then return is_less(a_millis, b_millis) end
  return is_less(a_sequence, b_sequence)
end

-- Whether a stream whose entry of this number had this id can be this one.
local function goes_on(number, id)
  if added < number or is_before(last, id) then return false end
  if added == number then return last == id end
  -- Without deletions in the middle the first entry's number is known, and on the same side as its id.
  if length > 0 and is_before(deleted, first) then
    local first_number = added - length + 1
    -- A stream that is made anew in the millisecond of its last entry may have an id twice, with another number.
    if first == id then return first_number == number end
    return (first_number > number) == is_before(id, first)
  end
  return true
end

local record = redis.call('GET', KEYS[2])
local epoch, number, id
if record then epoch, number, id = string.match(record, '^(%x+) (%d+) (%d+-%d+)$') end
local is_same = epoch and goes_on(tonumber(number), id)
if is_same and ARGV[6] == epoch and ARGV[4] ~= '' then
  -- The caller may have counted too few (entries that were gone before it could read them), never too many.
  is_same = added >= tonumber(ARGV[4]) and not is_before(last, ARGV[5])
end
if not is_same then epoch = ARGV[1] end
local now = string.format('%s %.0f %s', epoch, math.max(added, 0), last)
local seconds = ARGV[2]
if added == 0 then seconds = ARGV[3] end
-- Kept anew when it has changed, or is through half of its time.
if now ~= record or redis.call('TTL', KEYS[2]) * 2 < tonumber(seconds) then
  redis.call('SET', KEYS[2], now, 'EX', seconds)
end
return {epoch, added, length, first, last, deleted}
