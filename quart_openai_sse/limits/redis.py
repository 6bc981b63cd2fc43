"""Counts that workers share by a Redis or Valkey, from 6.2 on; standalone, Sentinel or cluster, as the client is."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha1
from typing import Any, cast

import msgspec

from quart_openai_sse.limits import Holding, Leases, Others, Refusal

_Call = tuple["_Script", Sequence[str], Sequence[str | bytes | int]]


class _Script:
    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()


# A sorted set of the processes by the ends of their leases.
_RENEW = _Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
local known = redis.call('ZSCORE', KEYS[1], ARGV[1]) and 1 or 0
redis.call('ZADD', KEYS[1], string.format('%.0f', now + lease), ARGV[1])
redis.call('PEXPIRE', KEYS[1], lease * 10)
return {known, redis.call('ZRANGE', KEYS[1], 0, -1)}
""")

# One hash for each owner, and one for each of its streams that is read. Fields:
#   p<process>  "<number> <when> <streams> <readers> <reserved>"; of a stream: "<number> <when> <readers> 0 0"
#   t<process>  tokens spent in the window; they count when the process is dead, too
#   w           the end of the window
# A field of zeros stays for a minute: a holding that arrives late is known by its number.
_COUNT = _Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local it, me, kept = cmsgpack.unpack(ARGV[2]), ARGV[1], tonumber(ARGV[3])
local dead, holders = {}, {}
for _, process in ipairs(it.dead) do dead[process] = true end
local function text(number) return string.format('%.0f', number) end

local function look(key)
    local found = {0, 0, 0, spent = 0, number = -1, window = 0}
    local fields = redis.call('HGETALL', key)
    for i = 1, #fields, 2 do
        local kind, process, value = fields[i]:sub(1, 1), fields[i]:sub(2), fields[i + 1]
        if kind == 'w' then
            found.window = tonumber(value)
        elseif kind == 't' then
            if process ~= me then found.spent = found.spent + tonumber(value) end
        else
            local number, at, a, b, c = value:match('^(%d+) (%d+) (%d+) (%d+) (%d+)$')
            local held = a + b + c
            if process == me then
                found.number = tonumber(number)
            elseif dead[process] or (held == 0 and now - at > 60000) then
                redis.call('HDEL', key, fields[i])
            elseif held > 0 then
                found[1], found[2], found[3] = found[1] + a, found[2] + b, found[3] + c
                holders[process] = true
            end
        end
    end
    if found.window > 0 and found.window <= now then
        for i = 1, #fields, 2 do
            if fields[i]:sub(1, 1) ~= 'p' then redis.call('HDEL', key, fields[i]) end
        end
        found.window, found.spent = 0, 0
    end
    return found
end

local others = look(KEYS[1])
local late = it.number <= others.number
local window, most = others.window, it.most_tokens
local counts = it.window == 0 or it.window > now  -- what was spent in an ended window is over
local own = counts and it.spent or 0
if not late and own > 0 then
    if window == 0 then
        window = now + it.remaining
        if it.window > 0 and it.window < window + 60000 then window = it.window end
    elseif it.window > 0 and it.window < window then
        window = it.window
    end
end
if not late and counts and window > 0 then
    redis.call('HSET', KEYS[1], 'w', text(window), 't' .. me, text(own))
end
local spent = others.spent + own

local streams, keys, readers = {}, {}, {}
for i = 2, #KEYS do
    local id = ARGV[i + 2]
    streams[id], keys[id], readers[id] = look(KEYS[i]), KEYS[i], it.reading[id]
end

local mine = {it.streams, it.readers, it.reserved}
local function refusal(wish)
    if wish.streams > 0 and wish.most_streams >= 0
        and others[1] + mine[1] + wish.streams > wish.most_streams then return 'streams' end
    if wish.stream ~= '' then
        if wish.most_stream_readers >= 0
            and streams[wish.stream][1] + readers[wish.stream] >= wish.most_stream_readers then
            return 'stream_readers'
        end
        if wish.most_readers >= 0 and others[2] + mine[2] >= wish.most_readers then return 'readers' end
    end
    if wish.tokens > 0 and most >= 0 then
        local left, reserved = most - spent, others[3] + mine[3] - wish.instead
        if wish.instead > 0 and wish.prompt <= wish.instead then reserved = 0 end
        if left <= 0 or wish.prompt > left or left <= reserved or wish.prompt > left - reserved then
            return 'tokens'
        end
    end
    return ''
end

local refusals = {}
for i, wish in ipairs(it.wishes) do
    refusals[i] = refusal(wish)
    if refusals[i] == '' then
        mine[1] = mine[1] + wish.streams
        mine[3] = mine[3] + wish.tokens - wish.instead
        if wish.stream ~= '' then
            mine[2] = mine[2] + 1
            readers[wish.stream] = readers[wish.stream] + 1
        end
    end
end

if not late then
    local function tell(key, a, b, c)
        redis.call('HSET', key, 'p' .. me, table.concat({text(it.number), text(now), text(a), text(b), text(c)}, ' '))
    end
    tell(KEYS[1], mine[1], mine[2], mine[3])
    for id, key in pairs(keys) do
        tell(key, readers[id], 0, 0)
        redis.call('PEXPIRE', key, kept)
    end
    redis.call('PEXPIRE', KEYS[1], text(math.max(kept, window - now + 60000)))
end
local names = {}
for process in pairs(holders) do names[#names + 1] = process end
return {refusals, text(others.spent), text(others[3]), text(window), text(math.max(0, window - now)), names}
""")

_KEPT = 3_600_000  # milliseconds after which a key that nobody has written to is gone; holders write sooner


class RedisCounts:
    """Counts of all workers that use the same *prefix* on the same Redis.

    *client* is a `redis.asyncio.Redis` or `RedisCluster` of the running event loop, which the caller closes. Nothing
    waits for it longer than a second, whatever its own timeouts and retries are. *lease* is in seconds.
    """

    def __init__(self, client: Any, *, prefix: str = "openai-sse", lease: float = 15) -> None:
        self.lease = lease
        self._client = client
        self._prefix = f"{prefix}:1:limits"
        self._process = secrets.token_hex(8)

    async def renew(self) -> Leases:
        """See `SharedCounts.renew`."""
        [(known, alive)] = await self._run([(_RENEW, [self._processes], [self._process, round(self.lease * 1000)])])
        return Leases(known=bool(known), alive=frozenset(map(_text, alive)))

    async def count(self, holdings: Sequence[Holding]) -> Sequence[Others]:
        """See `SharedCounts.count`."""
        return [_others(answer) for answer in await self._run([self._call(holding) for holding in holdings])]

    async def aclose(self) -> None:
        """See `SharedCounts.aclose`."""
        with suppress(Exception):
            await self._client.execute_command("ZREM", self._processes, self._process)

    @property
    def _processes(self) -> str:
        return f"{self._prefix}:processes"

    def _call(self, holding: Holding) -> _Call:
        # The tag, so that all keys of an owner are in one slot of a cluster.
        key = f"{self._prefix}:{{{holding.owner}}}"
        return (
            _COUNT,
            [key, *(f"{key}:{stream}" for stream in holding.reading)],
            [self._process, msgspec.msgpack.encode(holding), _KEPT, *holding.reading],
        )

    async def _run(self, calls: Sequence[_Call]) -> list[Any]:
        """Runs the scripts in one round trip, and a second one for those that the server does not know."""
        answers = await self._send([("EVALSHA", script.sha, len(keys), *keys, *rest) for script, keys, rest in calls])
        # By its name: this module works without importing `redis`; the caller makes the client.
        unknown = [number for number, answer in enumerate(answers) if type(answer).__name__ == "NoScriptError"]
        if unknown:
            again = [calls[number] for number in unknown]
            sent = await self._send([("EVAL", script.text, len(keys), *keys, *rest) for script, keys, rest in again])
            for number, answer in zip(unknown, sent, strict=True):
                answers[number] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def _send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        if len(commands) == 1:
            try:
                return [await self._client.execute_command(*commands[0])]
            except Exception as error:
                return [error]
        async with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return cast("list[Any]", await pipe.execute(raise_on_error=False))


def _others(answer: Sequence[Any]) -> Others:
    refusals, spent, reserved, window, remaining, holders = answer
    return Others(
        refusals=[cast(Refusal, _text(refusal)) for refusal in refusals],
        spent=int(spent),
        reserved=int(reserved),
        window=int(window),
        remaining=int(remaining),
        holders=frozenset(map(_text, holders)),
    )


def _text(value: bytes | str) -> str:
    """The client of an app may decode what it receives."""
    return value if isinstance(value, str) else value.decode()
