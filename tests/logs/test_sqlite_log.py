"""The example of a log of one's own keeps the contract, in one process and across two."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from quart_openai_sse.testing import StreamLogContract
from tests.conftest import Clock
from tests.logs.sqlite_log import SQLiteLog


class TestInOneProcess(StreamLogContract):
    """One log."""

    max_bytes = 16 << 20

    @pytest.fixture
    def log(self, tmp_path: Path) -> SQLiteLog:
        return SQLiteLog(tmp_path / "streams.db", clock=Clock())

    async def expire(self, log: SQLiteLog) -> None:
        log.clock.now += 301

    @asynccontextmanager
    async def unreachable(self, log: SQLiteLog) -> AsyncIterator[None]:
        with closing(sqlite3.connect(log.path)) as locking:
            locking.execute("BEGIN EXCLUSIVE")
            yield

    async def lose(self, log: SQLiteLog) -> None:
        with log.transaction() as db:
            db.execute("UPDATE processes SET seen = 0 WHERE id = ?", [log.process])
        third = SQLiteLog(log.path, clock=log.clock)
        await third.open()
        await third.aclose()


class TestInTwoProcesses(TestInOneProcess):
    """Two logs on the same file."""

    def other(self, log: SQLiteLog) -> SQLiteLog:
        return SQLiteLog(log.path, clock=log.clock)
