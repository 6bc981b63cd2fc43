"""Starts in a period that several apps and processes share by a Redis."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from quart_openai_sse.limits.starts import limit_starts
from quart_openai_sse.testing import ScriptedUpstream
from tests.conftest import BOB, QUESTION, CreateApp, Serve
from tests.limits.test_starts import BODY

PROCESS = """
import asyncio, sys
from datetime import timedelta
from quart_openai_sse import Principal
from quart_openai_sse.limits.starts import limit_starts

async def main():
    hook = limit_starts(7, timedelta(minutes=1), storage=sys.argv[1])
    starts = (hook({}, Principal("ann")) for _ in range(int(sys.argv[2])))
    print((await asyncio.gather(*starts, return_exceptions=True)).count(None))
    await hook.aclose()

asyncio.run(main())
"""


@pytest.mark.parametrize("at_once", [15, 200])
async def test_apps_share_a_count_and_let_no_more_pass(
    create_app: CreateApp, serve: Serve, redis_server: Path, at_once: int
) -> None:
    clients = []
    for _ in range(2):
        app, ai = create_app(ScriptedUpstream("hello"), max_streams_per_principal=1000)
        ai.prepare(limit_starts(7, timedelta(minutes=1), storage=f"redis+unix://{redis_server}"))
        clients.append(await serve(app))
    asked = [clients[number % 2].post("/v1/streams", json=BODY) for number in range(at_once)]
    answers = await asyncio.gather(*asked)
    assert Counter(each.status_code for each in answers) == {201: 7, 429: at_once - 7}
    refused = next(each for each in answers if each.status_code == 429)
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert (await clients[0].post("/v1/streams", json=BODY, headers=BOB)).status_code == 201


@pytest.mark.parametrize("at_once", [15, 200])
async def test_processes_share_a_count(redis_server: Path, at_once: int) -> None:
    command = [sys.executable, "-W", "error", "-c", PROCESS, f"redis+unix://{redis_server}", str(at_once)]
    processes = [
        await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2])
        for _ in range(2)
    ]
    counts = [int((await process.communicate())[0]) for process in processes]
    assert sum(counts) == 7


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
