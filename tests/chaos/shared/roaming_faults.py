"""What disturbs the roaming clients: workers that are killed or frozen, and a store that is away or emptied."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from tests.chaos.shared.site import Site, Worker
from tests.redis_servers import Server, redis_server

Disturbance = Callable[[float, float], Awaitable[None]]
BETWEEN = 6.0
"""Seconds between two faults, and as many more by chance."""


class Kept(Protocol):
    """A store that can be disturbed."""

    log: str

    def faults(self) -> Mapping[str, Callable[[float], Awaitable[bool]]]:
        """By name: lasts so many seconds, and returns whether the store is empty afterwards."""
        ...

    def check(self) -> list[str]:
        """What is wrong with it in the end."""
        ...


@dataclass
class KeptInRedis:
    """A server, which is paused, restarted and emptied."""

    folder: Path
    stack: ExitStack

    def __post_init__(self) -> None:
        self.server: Server = self.stack.enter_context(redis_server(self.folder))
        self.log = self.server.url

    def faults(self) -> Mapping[str, Callable[[float], Awaitable[bool]]]:
        return {"Redis is paused": self._pause, "Redis is restarted, empty": self._restart, "FLUSHDB": self._empty}

    async def _pause(self, seconds: float) -> bool:
        with self.server.paused():
            await asyncio.sleep(seconds)
        return False

    async def _restart(self, seconds: float) -> bool:
        self.server.kill()
        await asyncio.sleep(seconds)
        self.server = self.stack.enter_context(redis_server(self.folder))
        return True

    async def _empty(self, seconds: float) -> bool:
        self.server.send("FLUSHDB")
        return True

    def check(self) -> list[str]:
        return []


@dataclass
class KeptInSQLite:
    """A file, which another program locks."""

    path: Path

    def __post_init__(self) -> None:
        self.log = f"sqlite:///{self.path}"

    def faults(self) -> Mapping[str, Callable[[float], Awaitable[bool]]]:
        return {"another program writes": self._lock}

    async def _lock(self, seconds: float) -> bool:
        with closing(await asyncio.to_thread(self._locked)) as db:
            await asyncio.sleep(seconds)
            db.execute("ROLLBACK")
        return False

    def _locked(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, timeout=120, check_same_thread=False)
        db.execute("BEGIN IMMEDIATE")
        return db

    def check(self) -> list[str]:
        with closing(sqlite3.connect(self.path)) as db:
            (said,) = db.execute("PRAGMA integrity_check").fetchone()
        return [] if said == "ok" else [f"integrity_check: {said}"]


@asynccontextmanager
async def in_redis(folder: Path) -> AsyncIterator[Kept]:
    """A Redis server."""
    with ExitStack() as stack:
        yield KeptInRedis(folder / "redis", stack)


@asynccontextmanager
async def in_sqlite(folder: Path) -> AsyncIterator[Kept]:
    """An SQLite file."""
    yield KeptInSQLite(folder / "streams.db")


STORES: Mapping[str, Callable[[Path], AbstractAsyncContextManager[Kept]]] = {"redis": in_redis, "sqlite": in_sqlite}


@dataclass
class Disturbed:
    """A site, and when what was done to it."""

    site: Site
    kept: Kept
    write: Callable[[str], object]
    faults: Counter[str] = field(default_factory=Counter)
    hits: list[tuple[float, int, bool]] = field(default_factory=list)
    """Until when a worker was ended (true) or frozen, and its process. In the future, as long as that lasts."""
    emptied: list[float] = field(default_factory=list)

    async def run(self, chance: random.Random, seconds: float) -> None:
        """For so long, one fault of a worker after the other, and at the same time one of the store after the other."""
        workers = {"killed": self._kill, "frozen": self._freeze, "restarted": self._restart}
        own = {f"a worker is {name}": partial(self._to_a_worker, fault) for name, fault in workers.items()}
        store = {name: partial(self._to_the_store, fault) for name, fault in self.kept.faults().items()}
        chances = [random.Random(chance.random()) for _ in range(2)]
        until = time.monotonic() + seconds
        await asyncio.gather(
            self._disturb(own, chances[0], seconds, until), self._disturb(store, chances[1], seconds, until)
        )

    async def _disturb(
        self, faults: Mapping[str, Disturbance], chance: random.Random, seconds: float, until: float
    ) -> None:
        while True:
            wait = BETWEEN * (1 + chance.random())
            if time.monotonic() + wait > until:
                await asyncio.sleep(until - time.monotonic())
                return
            await asyncio.sleep(wait)
            name, lasts, place = chance.choice(list(faults)), 0.5 + 6 * chance.random(), chance.random()
            self.faults[name] += 1
            self.write(f"{seconds - until + time.monotonic():6.0f} s   {name}, {lasts:.1f} s\n")
            await faults[name](lasts, place)

    async def _to_the_store(self, fault: Callable[[float], Awaitable[bool]], seconds: float, place: float) -> None:
        began = time.monotonic()
        if await fault(seconds):
            self.emptied += [began, time.monotonic()]

    async def _to_a_worker(
        self, fault: Callable[[Worker, float], Awaitable[None]], seconds: float, chance: float
    ) -> None:
        living = [worker for worker in self.site.workers if worker.process.returncode is None]
        worker = living[int(chance * len(living))]
        place = len(self.hits)
        self.hits.append((float("inf"), worker.process.pid, fault != self._freeze))
        await fault(worker, seconds)
        self.hits[place] = (time.monotonic(), *self.hits[place][1:])

    async def _kill(self, worker: Worker, seconds: float) -> None:
        await worker.kill()
        await self.site.add()

    async def _freeze(self, worker: Worker, seconds: float) -> None:
        worker.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        worker.send(signal.SIGCONT)

    async def _restart(self, worker: Worker, seconds: float) -> None:
        """As a deploy does it: the new one first."""
        await self.site.add()
        await worker.end()

    def hit(self, worker: Worker, since: float) -> bool:
        """Whether something was done to this worker since then."""
        return any(at >= since and pid == worker.process.pid for at, pid, _ in self.hits)

    def any_hit(self, since: float) -> bool:
        """Whether any was."""
        return any(at >= since - 1 for at, _, _ in self.hits)

    def emptied_since(self, since: float) -> bool:
        """Whether the store was."""
        return any(at >= since for at in self.emptied)

    def may_be_forgotten(self, since: float) -> bool:
        """Whether a worker was ended and the store emptied since then."""
        return self.emptied_since(since) and any(at >= since - 1 and ended for at, _, ended in self.hits)

    def check(self) -> list[str]:
        """What is wrong with the store in the end."""
        return self.kept.check()
