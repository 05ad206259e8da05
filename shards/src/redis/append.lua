-- Trims a stream, appends an entry to it, and publishes the same payload, in one step of Redis: whoever hears the
-- publication finds the entry, and nobody sees one of two appenders' entries between the other's two.
--
-- KEYS[1]: the stream. ARGV: the payload, its type, the channel, entries to keep, milliseconds to keep; what is empty is not
-- wanted. Returns the entry's id, and how many subscribers of this node the publication was handed to (-1: not published).
local payload, kind, channel, entries, millis = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if millis ~= '' then
  -- The age by the clock that made the ids, not by that of whoever appends. First: Redis takes nothing of a script back, so who
  -- may not trim has appended nothing.
  local now = redis.call('TIME')
  local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - millis
  redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', math.max(oldest, 0)))
end
local command = {'XADD', KEYS[1]}
if entries ~= '' then
  -- About: Redis removes whole nodes of the stream's tree (100 entries by default), which costs next to nothing.
  for _, word in ipairs({'MAXLEN', '~', entries}) do command[#command + 1] = word end
end
for _, word in ipairs({'*', 'data', payload}) do command[#command + 1] = word end
if kind ~= '' then
  for _, word in ipairs({'type', kind}) do command[#command + 1] = word end
end
local id = redis.call(unpack(command))
if channel == '' then
  return {id, -1}
end
return {id, redis.call('PUBLISH', channel, payload)}
