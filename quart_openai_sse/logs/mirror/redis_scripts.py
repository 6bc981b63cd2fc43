"""The scripts about streams that run within Redis. docs/reference/shared-log.md describes keys and fields."""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Script(NamedTuple):
    """A script, and the name by which a server knows it once it has run it."""

    text: str
    sha: str


def script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


NOW = """
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

# KEYS of a stream: 1 its state, 2 about, batches and end, 3 what hooks need. The fields of its state: w writer,
# d digest, c count, b created, l life in ms, s stop, n attempt, r readers, t when the last of them left,
# e when it ended, k "0" if it does not hold its key. In each script the first command that writes is one that Redis
# refuses for lack of memory: after another one it would not be refused.
_STREAM = (
    NOW
    + """
local function process(writer)
  return string.match(writer, '^[^.]*')
end

local function view(about, even_evicted)
  local s = redis.call('HMGET', KEYS[1], 'w', 'd', 'c', 's', 'n', 'r', 'e', 't', 'b')
  if not s[1] then return false end
  local kept = redis.call('EXISTS', KEYS[2])
  local time, fin, decided, ended_ago = now(), '', '', 0
  if s[7] then
    ended_ago = time - s[7]
    fin = kept == 1 and redis.call('LINDEX', KEYS[2], -1) or '\\255'
  elseif kept == 0 and not even_evicted then
    return false
  else
    decided = redis.call('HGET', KEYS[3], 'x') or ''
  end
  return {s[1], s[2], tonumber(s[3]), fin, decided, s[4] or '', tonumber(s[5] or 1), s[6] or '',
    (kept == 1 or not s[7]) and 1 or 0, ended_ago, time - s[8], s[9] or '0',
    about and redis.call('LINDEX', KEYS[2], 0) or ''}
end
"""
)

# ARGV: writer, digest, about, created, life. The state that holds the key, or nil.
CREATE = script(
    _STREAM
    + """
local s = redis.call('HMGET', KEYS[1], 'w', 'e', 'k')
local again = s[1] == ARGV[1]
if again and (s[2] or redis.call('EXISTS', KEYS[2]) == 1) then return false end
if s[1] and not again and s[3] ~= '0' then return view(true, true) end
redis.call('HSET', KEYS[1], 'w', ARGV[1], 'd', ARGV[2], 'c', 0, 'b', ARGV[4], 'l', ARGV[5], 't', now())
if not again then redis.call('HDEL', KEYS[1], 's', 'n', 'r', 'e', 'k') end
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return false
"""
)

# The keys of each stream in turn. ARGV: for each stream place, count, retention, retention + tombstone, holds_key,
# writer, batch, decided, end, request, channel, each with its length before it. One argument, because arguments and
# commands are what costs the client time. For each stream the count alone if there is nothing else to say, otherwise
# result, count, stop, readers. Keys of another program are as good as none: `create` will say so.
WRITE = script(
    NOW
    + """
local call, replies = redis.call, {}

local function write(state, batches, hooks, values)
  local place, count, kept, known, holds_key, writer, batch, decided, fin, request, channel =
    struct.unpack('>I4I4I8I8BI4c0I4c0I4c0I4c0I4c0I4c0', values)
  local s = call('HMGET', state, 'w', 'c', 'e', 's', 'r', 'l')
  if not s[1] then return {'gone', 0, '', ''} end
  local stored = tonumber(s[2])
  local function answer(result)
    return {result, stored, s[4] or '', s[5] or ''}
  end
  if s[1] ~= writer then return answer('lost') end
  if s[3] then return answer(count <= stored and 'done' or 'lost') end
  if stored ~= place and stored ~= count then return answer('moved') end
  if stored == place and batch ~= '' then
    if call('RPUSHX', batches, batch) == 0 then return {'gone', 0, '', ''} end
    call('HSET', state, 'c', count)
    call('PUBLISH', channel, batch)
    stored = count
  elseif call('EXISTS', batches) == 0 then
    return {'gone', 0, '', ''}
  end
  if fin ~= '' then
    call('RPUSH', batches, fin)
    call('HSET', state, 'e', now())
    call('HDEL', state, 'r')
    if holds_key == 0 then call('HSET', state, 'k', '0') end
    call('DEL', hooks)
    call('PUBLISH', channel, fin)
    call('PEXPIRE', state, known)
    call('PEXPIRE', batches, kept)
  else
    if decided ~= '' then call('HSET', hooks, 'x', decided) end
    if request ~= '' then call('HSET', hooks, 'r', request) end
    if decided ~= '' or request ~= '' or call('PTTL', state) < 0.75 * s[6] then
      call('PEXPIRE', state, s[6])
      call('PEXPIRE', batches, s[6])
      call('PEXPIRE', hooks, s[6])
    end
  end
  if not s[4] and not s[5] then return stored end
  return answer('done')
end

for n, values in ipairs(ARGV) do
  local fine, reply = pcall(write, KEYS[3 * n - 2], KEYS[3 * n - 1], KEYS[3 * n], values)
  if not fine then
    local text = type(reply) == 'table' and reply.err or tostring(reply)
    if not string.find(text, 'WRONGTYPE', 1, true) then return redis.error_reply(text) end
    reply = {'gone', 0, '', ''}
  end
  replies[n] = reply
end
return replies
"""
)

# ARGV: place, size, reader, tell, channel of a process without its name. State and batches.
LOAD = script(
    _STREAM
    + """
local state = view(true)
if not state then return false end
local running = state[4] == ''
if running and ARGV[3] ~= '' then
  local writer = process(state[1])
  if ARGV[3] ~= writer and not string.find(state[8], ARGV[3], 1, true) then
    state[8] = state[8] == '' and ARGV[3] or state[8] .. ' ' .. ARGV[3]
    redis.call('HSET', KEYS[1], 'r', state[8])
  end
  if ARGV[4] ~= '' then redis.call('PUBLISH', ARGV[5] .. writer, ARGV[4]) end
end
local place, size, batches = tonumber(ARGV[1]), tonumber(ARGV[2]), {}
if state[9] == 0 or state[3] <= place then return {state, batches} end
-- The first element is about, and the last one may be the end. What is searched for is the first batch that ends behind
-- the place: its header says where it begins, counted from 1, and how many entries it has.
local last = redis.call('LLEN', KEYS[2]) - (running and 1 or 2)
local low, high = 1, last
while low < high do
  local middle = math.floor((low + high) / 2)
  local first, number = struct.unpack('>I4I4', redis.call('LINDEX', KEYS[2], middle))
  if first + number > place + 1 then high = middle else low = middle + 1 end
end
local total, step = 0, 1
while low <= last and total < size do
  local part = redis.call('LRANGE', KEYS[2], low, math.min(last, low + step - 1))
  for _, batch in ipairs(part) do
    batches[#batches + 1] = batch
    total = total + #batch
    if total >= size then break end
  end
  low = low + #part
  step = math.max(1, math.min(256, math.ceil((size - total) * #batches / total)))
end
return {state, batches}
"""
)

# ARGV: reader, tell, channel of a process without its name.
LEAVE = script(
    _STREAM
    + """
local s = redis.call('HMGET', KEYS[1], 'w', 'e', 'r')
if not s[1] or s[2] then return 0 end
local others = {}
for reader in string.gmatch(s[3] or '', '%S+') do
  if reader ~= ARGV[1] then others[#others + 1] = reader end
end
local left = table.concat(others, ' ')
if left ~= (s[3] or '') then
  redis.call('HSET', KEYS[1], 't', now())
  if left == '' then redis.call('HDEL', KEYS[1], 'r') else redis.call('HSET', KEYS[1], 'r', left) end
end
if ARGV[2] ~= '' then redis.call('PUBLISH', ARGV[3] .. process(s[1]), ARGV[2]) end
return 1
"""
)

# ARGV: "1" for the state with about.
STATE = script(_STREAM + "return view(ARGV[1] == '1')")

# ARGV: reason, tell, channel of a process without its name. The state before.
STOP = script(
    _STREAM
    + """
local state = view(true)
if state and state[4] == '' then
  if state[6] == '' then redis.call('HSET', KEYS[1], 's', ARGV[1]) end
  if ARGV[2] ~= '' then redis.call('PUBLISH', ARGV[3] .. process(state[1]), ARGV[2]) end
end
return state
"""
)

# ARGV: dead process, new writer. The new state.
CLAIM = script(
    _STREAM
    + """
local state = view(true, true)
if not state or state[4] ~= '' then return false end
if state[1] ~= ARGV[2] and process(state[1]) ~= ARGV[1] then return false end
if redis.call('EXISTS', KEYS[2]) == 0 then  -- its batches were evicted, and the only other copy has died
  redis.call('DEL', KEYS[1], KEYS[3])
  return false
end
if state[1] ~= ARGV[2] then
  redis.call('HSET', KEYS[1], 'w', ARGV[2], 'n', state[7] + 1)
  local life = redis.call('HGET', KEYS[1], 'l')
  for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], life) end
end
return view(true)
"""
)

REQUEST = script("return redis.call('HGET', KEYS[3], 'r') or ''")

ERASE = script(
    """
if redis.call('HEXISTS', KEYS[1], 'e') == 0 then return 0 end
redis.call('HDEL', KEYS[1], 'b', 's')
return redis.call('DEL', KEYS[2], KEYS[3])
"""
)
