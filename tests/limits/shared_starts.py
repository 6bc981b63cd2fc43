"""What the tests of starts share that several apps and processes count together, whatever the storage."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

from quart_openai_sse.limits.starts import limit_starts
from quart_openai_sse.testing import ScriptedUpstream
from tests.conftest import BOB, CreateApp, Serve
from tests.limits.test_starts import BODY, MINUTE

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

_ROOT = Path(__file__).parents[2]


async def check_two_apps(create_app: CreateApp, serve: Serve, storage: str, at_once: int) -> None:
    """Checks that of so many starts at two apps seven pass, and that the others are told when to try again."""
    clients = []
    for _ in range(2):
        app, ai = create_app(ScriptedUpstream("hello"), max_streams_per_principal=1000)
        ai.prepare(limit_starts(7, MINUTE, storage=storage))
        clients.append(await serve(app))
    asked = [clients[number % 2].post("/v1/streams", json=BODY) for number in range(at_once)]
    answers = await asyncio.gather(*asked)
    assert Counter(each.status_code for each in answers) == {201: 7, 429: at_once - 7}
    refused = next(each for each in answers if each.status_code == 429)
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert (await clients[0].post("/v1/streams", json=BODY, headers=BOB)).status_code == 201


async def passed_in_processes(storage: str, at_once: int) -> int:
    """How many starts pass in two processes, each of which tries so many at once. Seven are allowed."""
    command = [sys.executable, "-W", "error", "-c", PROCESS, storage, str(at_once)]
    processes = [
        await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=_ROOT) for _ in range(2)
    ]
    return sum([int((await process.communicate())[0]) for process in processes])
