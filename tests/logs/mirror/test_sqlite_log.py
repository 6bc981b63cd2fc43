"""The log on SQLite files keeps the contract of a log: with one process, and with two."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from quart_openai_sse.config import Config
from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs.mirror import Processes
from quart_openai_sse.logs.mirror.log import MirrorLog
from quart_openai_sse.logs.mirror.sqlite import SQLiteStore
from quart_openai_sse.testing import StreamLogContract
from tests.logs.mirror.test_sqlite_store import moved
from tests.logs.two_processes import WithoutTwoProcesses

LEASE = 0.4
CONFIG = Config(max_bytes=16 << 20)


class LaterClock:
    """The time, and what a test adds to it."""

    later = 0.0

    def __call__(self) -> float:
        return time.time() + self.later


class LosingStore(SQLiteStore):
    """A store whose process renews its lease only while it may."""

    def __init__(self, path: Path, clock: LaterClock) -> None:
        super().__init__(path, clock=clock)
        self.path, self.clock = path, clock
        self.may_renew = asyncio.Event()
        self.may_renew.set()

    async def renew(self, lease: float) -> Processes:
        await self.may_renew.wait()
        return await super().renew(lease)


def log_on(path: Path, clock: LaterClock) -> MirrorLog:
    log = MirrorLog(LosingStore(path, clock), CONFIG, lease=LEASE)
    log.memory.clock = clock
    return log


class TestSQLiteLog(StreamLogContract):
    """Two logs on one file."""

    max_bytes = 16 << 20

    @pytest.fixture
    async def log(self, tmp_path: Path) -> MirrorLog:
        return log_on(tmp_path / "streams.db", LaterClock())

    def other(self, log: Any) -> MirrorLog:
        return log_on(log.store.path, log.store.clock)

    @asynccontextmanager
    async def unreachable(self, log: Any) -> AsyncIterator[None]:
        with moved(log.store.path):
            yield

    async def test_a_log_that_could_not_be_opened_can_be_opened_later(self, log: Any) -> None:
        """As in the contract, but with a locked file: another thing in its place would be refused."""
        with closing(sqlite3.connect(log.store.path, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            with pytest.raises(LogUnavailable, match="locked"):
                await log.open()
            assert not await log.ready()
            db.execute("ROLLBACK")
        await log.open()
        assert await log.ready()
        await log.aclose()

    async def expire(self, log: Any) -> None:
        log.store.clock.later += 301

    async def lose(self, log: Any) -> None:
        log.store.may_renew.clear()
        await self.find_the_dead(log)
        log.store.may_renew.set()

    async def find_the_dead(self, log: Any) -> None:
        """Waits until the other process has claimed all streams of the process of *log*, or has forgotten it."""
        known = "SELECT count(*) FROM processes WHERE process = ?"
        had = await log.store.streams_of(log.process)
        with closing(sqlite3.connect(log.store.path)) as db:
            while await log.store.streams_of(log.process) if had else db.execute(known, [log.process]).fetchone()[0]:
                await asyncio.sleep(LEASE / 10)


class TestSQLiteLogInOne(WithoutTwoProcesses, TestSQLiteLog):
    """One log. Another one is there while it takes the first for dead."""

    def other(self, log: Any) -> MirrorLog:
        return log

    async def lose(self, log: Any) -> None:
        await super().lose(log)
        while any(stream.retain and stream.end is None for stream in log.memory._streams.values()):
            await asyncio.sleep(LEASE / 10)  # until it knows

    async def find_the_dead(self, log: Any) -> None:
        third = super().other(log)
        await third.open()
        known = "SELECT count(*) FROM processes WHERE process = ?"
        with closing(sqlite3.connect(log.store.path)) as db:
            while db.execute(known, [log.process]).fetchone()[0]:
                await asyncio.sleep(LEASE / 10)
        await third.aclose()
