"""Random steps and faults on a Redis server, many seeds at a time. What a seed decides is the same, not the time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from quart_openai_sse.config import Config
from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs import StreamLog
from quart_openai_sse.logs.mirror import Processes
from quart_openai_sse.logs.mirror.redis import RedisStore
from tests.logs.mirror.chances.world import World
from tests.logs.mirror.contract import MirrorContract
from tests.logs.mirror.faulty_process import remote
from tests.logs.mirror.faulty_store import FaultyStore
from tests.redis_servers import Server

LEASE = 2.0
PACE = 0.1
AT_ONCE = 25
"""Seeds. They share the event loop: with more of them processes would be taken for dead because the loop is busy."""
DELETE = """
local cursor = '0'
repeat
  local found = redis.call('SCAN', cursor, 'MATCH', ARGV[1], 'COUNT', 1000)
  cursor = found[1]
  for _, key in ipairs(found[2]) do redis.call('DEL', key) end
until cursor == '0'
"""


class Process(FaultyStore):
    """A process with faults, which knows when it did not renew its lease in time."""

    renewed: float | None = None

    def __init__(self, store: RedisStore) -> None:
        super().__init__(store)
        self.lapses: list[float] = []

    @remote
    async def renew(self, lease: float) -> Processes:
        processes = await self.store.renew(lease)
        now = asyncio.get_running_loop().time()
        if self.renewed is not None and now - self.renewed >= lease * 0.9:
            self.lapses.append(now)
        self.renewed = now
        return processes


class OnRedis:
    """What the steps do to the server: only to the keys of one seed."""

    def __init__(self, server: Server, prefix: str, stores: Iterable[Process]) -> None:
        self._server, self._prefix = server, prefix
        self._stores = set(stores)

    async def flush(self) -> None:
        await self._delete(f"{self._prefix}:*")

    async def forget(self, key: str) -> None:
        await self._delete(f"{self._prefix}:*{{s/{key}}}:*")

    async def forget_batches(self, key: str) -> None:
        await self._delete(f"{self._prefix}:*{{s/{key}}}:batches")

    async def cut(self) -> None:
        """Cuts the connections of all processes, those of other seeds too."""
        await asyncio.to_thread(self._server.send, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.to_thread(self._server.send, "CLIENT", "KILL", "TYPE", "pubsub")

    def may_be_dead(self, process: str, since: float) -> bool:
        now = asyncio.get_running_loop().time()
        (store,) = (each for each in self._stores if each.process == process)
        late = store.renewed is None or now - store.renewed >= LEASE * 0.9
        return late or any(lapse >= since for lapse in store.lapses)

    async def _delete(self, pattern: str) -> None:
        await asyncio.to_thread(self._server.send, "EVAL", DELETE, 0, pattern)


async def play(server: Server, seed: int, steps: int) -> World:
    """Does *steps* random steps and ends all faults. What went wrong is in the world's `failures`."""
    prefix = f"seed{seed}"
    one, other = Process(RedisStore(server.url, prefix=prefix)), Process(RedisStore(server.url, prefix=prefix))
    log_class = MirrorContract.log_class
    logs = log_class(one, Config(), lease=LEASE), log_class(other, Config(), lease=LEASE)
    world = World(seed, logs, (one, other), OnRedis(server, prefix, (one, other)), pace=PACE)
    for log in logs:
        await _open(log)
    await world.play(steps)
    for log in logs:
        await log.aclose()
    return world


async def _open(log: StreamLog) -> None:
    while True:
        try:
            await log.open()
        except LogUnavailable:  # another seed has cut the connections
            await asyncio.sleep(PACE)
        else:
            return


async def play_all(server: Server, seeds: Iterable[int], steps: int) -> list[World]:
    """The same for many seeds, some at a time."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def play_one(seed: int) -> World:
        async with turn:
            return await play(server, seed, steps)

    return await asyncio.gather(*map(play_one, seeds))
