"""Starts in a period that several apps and processes share by a Redis."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from quart_openai_sse.limits.starts import limit_starts
from quart_openai_sse.testing import ScriptedUpstream
from tests.conftest import QUESTION, CreateApp, Serve
from tests.limits.shared_starts import check_two_apps, passed_in_processes


@pytest.mark.parametrize("at_once", [15, 200])
async def test_apps_share_a_count_and_let_no_more_pass(
    create_app: CreateApp, serve: Serve, redis_server: Path, at_once: int
) -> None:
    await check_two_apps(create_app, serve, f"redis+unix://{redis_server}", at_once)


@pytest.mark.parametrize("at_once", [15, 200])
async def test_processes_share_a_count(redis_server: Path, at_once: int) -> None:
    assert await passed_in_processes(f"redis+unix://{redis_server}", at_once) == 7


async def test_starts_one_after_the_other_pass_until_the_limit_and_again_after_the_period(
    create_app: CreateApp, serve: Serve, redis_server: Path
) -> None:
    app, ai = create_app(ScriptedUpstream("hello"))
    ai.prepare(limit_starts(4, timedelta(seconds=1), storage=f"redis+unix://{redis_server}"))
    client = await serve(app)
    body = {"model": "scripted", "messages": QUESTION}
    statuses = [(await client.post("/v1/chat/completions", json=body)).status_code for _ in range(4)]
    assert statuses == [200] * 4
    while (answer := await client.post("/v1/chat/completions", json=body)).status_code == 429:
        assert answer.json()["error"]["code"] == "too_many_starts"
    assert answer.status_code == 200
