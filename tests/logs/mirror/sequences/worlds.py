"""Two processes on one store, in memory or in Redis, for sequences."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from quart_openai_sse.config import Config
from quart_openai_sse.logs.mirror import Store
from quart_openai_sse.logs.mirror.redis import RedisStore
from tests.logs.mirror.contract import Clock, MirrorContract
from tests.logs.mirror.memory_store import MemoryStore, SharedMemory
from tests.redis_servers import Server

RETENTION = 300


class TwoProcesses:
    """Two logs on two stores, which share something."""

    def __init__(self, one: Store, other: Store, clock: Clock) -> None:
        log_class, config = MirrorContract.log_class, Config(retention=RETENTION)
        self.logs = (log_class(one, config), log_class(other, config))
        self.clock = clock
        for log in self.logs:
            log.memory.clock = clock

    async def lose(self, streams: list[tuple[str, int]]) -> None:
        """The other process does to these streams what it does to all streams of a dead process."""
        await asyncio.gather(
            *(self.logs[1 - process]._lost._end(key, self.logs[process].process) for key, process in streams)
        )
        for process in {process for _, process in streams}:
            self.logs[process]._look_again()

    async def expire(self) -> None:
        self.clock.later += RETENTION + 1

    async def __aenter__(self) -> TwoProcesses:
        for log in self.logs:
            await log.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        for log in self.logs:
            await log.aclose()


@asynccontextmanager
async def in_memory() -> AsyncIterator[TwoProcesses]:
    """Two processes on a new store in memory."""
    clock = Clock()
    memory = SharedMemory(clock=clock)
    async with TwoProcesses(MemoryStore(memory), MemoryStore(memory), clock) as world:
        yield world


# No clock of Redis can be set: what the time would remove is removed.
EXPIRE = """
local cursor = '0'
repeat
  local found = redis.call('SCAN', cursor, 'MATCH', ARGV[1], 'COUNT', 1000)
  cursor = found[1]
  for _, key in ipairs(found[2]) do
    local state = redis.call('HMGET', key, 'e', 'k')
    if state[1] then
      redis.call('DEL', (string.gsub(key, ':state$', ':batches')))
      if state[2] == '0' then redis.call('DEL', key) end
    end
  end
until cursor == '0'
"""


class InRedis(TwoProcesses):
    """Two processes on a Redis server."""

    def __init__(self, server: Server) -> None:
        one, other = (RedisStore(server.url, prefix="sequences") for _ in range(2))
        super().__init__(one, other, Clock())
        self.server = server

    async def expire(self) -> None:
        await super().expire()
        self.server.send("EVAL", EXPIRE, 0, "sequences*:state")


def in_redis(server: Server) -> Callable[[], AbstractAsyncContextManager[InRedis]]:
    """Makes two processes on a Redis server, which forgets everything before."""

    @asynccontextmanager
    async def world() -> AsyncIterator[InRedis]:
        server.send("FLUSHALL")
        async with InRedis(server) as world:
            yield world

    return world
