"""The scripts about processes, owners and messages that run within Redis."""

from __future__ import annotations

from quart_openai_sse.logs.mirror.redis_scripts import NOW, script

# The index of an owner has the time until which each stream may be there. ARGV: key, ms, "XX" or "CH".
INDEX = script(
    NOW
    + """
local time = now()
redis.call('ZADD', KEYS[1], ARGV[3], time + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', time)
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
"""
)

# ARGV: how many at most.
INDEXED = script(NOW + "return redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', now(), 'LIMIT', 0, ARGV[1])")

# The set of a process's streams. ARGV: ms, members …
ENTER = script(
    """
for i = 2, #ARGV do redis.call('SADD', KEYS[1], ARGV[i]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""
)

# ARGV: ms, members that are no longer in it … 0: there is no such set.
TOUCH = script(
    """
local known = redis.call('PEXPIRE', KEYS[1], ARGV[1])
for i = 2, #ARGV do redis.call('SREM', KEYS[1], ARGV[i]) end
return known
"""
)

MEMBERS = script("return redis.call('SMEMBERS', KEYS[1])")

DELETE = script("return redis.call('DEL', KEYS[1])")

# The registry of processes: when each one's lease ends. ARGV: process, lease in ms, ms. Whether it was known; the
# processes whose leases run; the others.
RENEW = script(
    NOW
    + """
local time = now()
local known = redis.call('ZSCORE', KEYS[1], ARGV[1]) and 1 or 0
redis.call('ZADD', KEYS[1], time + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {known, redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', time), '+inf'),
  redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', time)}
"""
)

BURY = script("return redis.call('ZREM', KEYS[1], ARGV[1])")

SEND = script("return redis.call('PUBLISH', ARGV[1], ARGV[2])")

CHECK = script("return redis.call('SET', KEYS[1], '', 'PX', 60000)")
