"""Starts in a period that several apps and processes share by an SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from threading import Thread

import pytest

from quart_openai_sse.limits import starts
from quart_openai_sse.limits.starts import limit_starts
from quart_openai_sse.testing import ScriptedUpstream
from tests.conftest import CreateApp, Serve
from tests.limits.shared_starts import check_two_apps, passed_in_processes
from tests.limits.test_starts import BODY, MINUTE, passed


@pytest.mark.parametrize("at_once", [15, 200])
async def test_apps_share_a_count_and_let_no_more_pass(
    create_app: CreateApp, serve: Serve, tmp_path: Path, at_once: int
) -> None:
    await check_two_apps(create_app, serve, f"sqlite:///{tmp_path / 'limits.db'}", at_once)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [15, 200])
async def test_processes_share_a_count(tmp_path: Path, at_once: int) -> None:
    assert await passed_in_processes(f"sqlite:///{tmp_path / 'limits.db'}", at_once) == 7


async def test_starts_pass_again_after_the_period_and_old_ones_are_removed(tmp_path: Path) -> None:
    hook = limit_starts(2, timedelta(seconds=1), storage=f"sqlite:///{tmp_path / 'limits.db'}")
    others = limit_starts(2, timedelta(seconds=1), storage=f"sqlite:///{tmp_path / 'limits.db'}", name="pictures")
    assert (await passed(hook, 3), await passed(others, 3)) == (2, 2)
    with closing(sqlite3.connect(tmp_path / "limits.db")) as database:

        def kept() -> int:
            [(count,)] = database.execute("SELECT count(*) FROM limits_starts WHERE key LIKE 'pictures%'")
            return int(count)

        assert kept() == 2
        async with asyncio.timeout(10):
            while not await passed(hook, 1) or kept():
                await asyncio.sleep(0.05)
    await hook.aclose()  # type: ignore[attr-defined]
    await others.aclose()  # type: ignore[attr-defined]


def test_event_loops_share_the_file_and_a_hook_that_was_closed_opens_it_again(tmp_path: Path) -> None:
    hook, counts = limit_starts(5, MINUTE, storage=f"sqlite:///{tmp_path / 'limits.db'}"), list[int]()

    async def run() -> None:
        counts.append(await passed(hook, 20))
        await hook.aclose()  # type: ignore[attr-defined]

    threads = [Thread(target=lambda: asyncio.run(run())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 5


async def test_starts_are_refused_while_the_file_cannot_be_written(
    create_app: CreateApp,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, ai = create_app(upstream := ScriptedUpstream("hello"))
    ai.prepare(limit_starts(3, MINUTE, storage=f"sqlite:///{tmp_path / 'limits.db'}"))
    client = await serve(app)
    assert (await client.post("/v1/streams", json=BODY)).status_code == 201
    with closing(sqlite3.connect(tmp_path / "limits.db", isolation_level=None)) as locking:
        locking.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(starts, "_PATIENCE", 0.05)
        answer = await client.post("/v1/streams", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "limits_unavailable")
    assert len(upstream.requests) == 1
    assert "starts could not be counted" in caplog.text


@pytest.mark.parametrize("storage", ["sqlite:", "sqlite://", "sqlite:///", "sqlite:limits.db", "sqlite://limits.db"])
def test_an_address_without_a_path_is_refused(storage: str) -> None:
    with pytest.raises(ValueError, match="limit_starts: storage must be sqlite:/// and a path"):
        limit_starts(5, MINUTE, storage=storage)
