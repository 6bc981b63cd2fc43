"""Counts in an SQLite file."""

from __future__ import annotations

import asyncio
import gc
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from quart_openai_sse.limits.sqlite import SQLiteCounts
from quart_openai_sse.limits.sqlite_file import CountsFile
from tests.limits.counts_contract import STREAM, NewCounts, Process, SharedCountsContract


class TestCounts(SharedCountsContract):
    @pytest.fixture
    def new_counts(self, tmp_path: Path) -> NewCounts:
        def create(**options: Any) -> SQLiteCounts:
            return SQLiteCounts(tmp_path / "counts.db", **options)

        return create


async def test_what_a_dead_process_holds_is_free_without_a_look_at_the_processes(tmp_path: Path) -> None:
    dead, process = (Process(SQLiteCounts(tmp_path / "counts.db", lease=lease)) for lease in (0.2, 15))
    for each in (dead, process):
        await each.counts.renew()
    await dead.tell(streams=7)
    assert (await process.tell(STREAM)).refusals == ["streams"]
    async with asyncio.timeout(10):
        while (await process.tell(STREAM)).refusals == ["streams"]:
            await asyncio.sleep(0.01)
    for each in (dead, process):
        await each.counts.aclose()


if sys.version_info >= (3, 13):  # before, sqlite3 did not warn of connections that are not closed

    def test_counts_of_an_event_loop_that_was_closed_leave_no_connection_open(tmp_path: Path) -> None:
        async def count() -> None:
            await CountsFile(tmp_path / "counts.db").run(lambda database: None)

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            asyncio.run(count())
            gc.collect()
        assert [message for each in caught if "database" in (message := str(each.message))] == []
