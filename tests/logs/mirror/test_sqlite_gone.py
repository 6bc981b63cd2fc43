"""A store in an SQLite file whose disk is full, or that is removed while streams run."""

from __future__ import annotations

from pathlib import Path

import pytest

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs.mirror import sqlite_thread
from quart_openai_sse.logs.mirror.sqlite import SQLiteStore
from tests.logs.mirror.store_contract_base import ANN, Process, batch, stream, write


async def test_a_store_is_not_ready_for_a_moment_after_its_disk_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(SQLiteStore(tmp_path / "streams.db"), ANN)
    await process.open()
    await process.store.create("k", stream())
    await process.store._do(lambda db: db.execute("PRAGMA max_page_count = 1"))  # which means: as many as it has
    assert await process.store.ready()
    for moment, is_ready in ((60.0, False), (-60.0, True)):
        monkeypatch.setattr(sqlite_thread, "_FULL_FOR", moment)
        with pytest.raises(LogUnavailable, match="the disk is full"):
            await process.store.write([write(0, 1, batch=batch(1, bytes(100_000)))])
        assert await process.store.ready() is is_ready
    await process.store.aclose()


async def test_after_its_file_was_removed_a_store_may_have_forgotten_what_runs(tmp_path: Path) -> None:
    process = Process(SQLiteStore(tmp_path / "streams.db"), ANN)
    await process.open()
    assert not process.store.forgetful  # an unknown stream is one that there is not
    for each in list(tmp_path.iterdir()):
        each.unlink()
    await process.until(lambda: process.again)
    assert process.store.forgetful
    await process.store.aclose()
