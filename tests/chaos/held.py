"""Memory that failed requests leave behind: large prompts, and every way to fail."""

from __future__ import annotations

import asyncio
import http.client
import json
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from quart import Quart

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.testing import ScriptedUpstream, chunk, refused, serve_app
from tests.chaos.builds import Case, Figures, known, measure, staged, table
from tests.chaos.memory import KIB, MIB, large_objects, resident, traced

REQUESTS = 40
PROMPT = 3 * MIB
AT_MOST = 64.0
"""KiB that a failed request may leave behind until its stream is forgotten."""

ANSWERS, KEPT = "answers", "KiB/request"
COLUMNS = (ANSWERS, KEPT, "prompts", "tasks", "RSS KiB/request")

CHAT, STREAMS = "/v1/chat/completions", "/v1/streams"
EVENTS = {"Accept": "text/event-stream"}


class Way(NamedTuple):
    """What is asked for, and in which app, so that it fails."""

    model: str
    route: str = CHAT
    key: bool = False
    """Whether each request has an Idempotency-Key of its own, so that its stream is kept."""
    headers: Mapping[str, str] = {}
    stream: bool = True
    full: bool = False
    """Whether a stream runs that takes the principal's only place."""
    options: Mapping[str, Any] = {}


ALLOWED = {"models": ("allowed",)}

WAITS = Way("waits", STREAMS)
"""The stream that takes the only place."""

WAYS = {
    "none: a stream that completes, kept": Way("sound", STREAMS),
    "upstream answers 400, kept, 201 at once": Way("refused", STREAMS),
    "upstream answers 400, kept, as events": Way("refused", STREAMS, headers=EVENTS),
    "upstream answers 400, Idempotency-Key": Way("refused", key=True),
    "upstream answers 400, not kept": Way("refused"),
    "upstream answers 400, not streamed": Way("refused", stream=False),
    "upstream ends without [DONE], kept": Way("cut", STREAMS),
    "upstream ends without [DONE], not kept": Way("cut"),
    "model not allowed, Idempotency-Key": Way("other", key=True, options=ALLOWED),
    "model not allowed, kept": Way("other", STREAMS, options=ALLOWED),
    "too many streams, Idempotency-Key": Way("sound", key=True, full=True),
    "too many streams, no key": Way("sound", full=True),
    "app model raises after a chunk, kept": Way("raises later", STREAMS),
    "app model raises after a chunk, not kept": Way("raises later"),
    "app model raises at once, kept": Way("raises", STREAMS),
    "app model raises at once, Idempotency-Key": Way("raises", key=True),
    "app model raises at once, not kept": Way("raises"),
}


async def held(way: Way, *, requests: int = REQUESTS, prompt: int = PROMPT) -> Figures:
    """What so many requests leave behind when their responses have been read and their tasks are over."""
    tracemalloc.start()
    upstream = ScriptedUpstream([_refuse] if way.model == "refused" else [chunk("Half an answer")])
    async with serve_app(_create_app(way, upstream)) as address:
        if way.full:
            await asyncio.to_thread(_ask, address, WAITS, _body(WAITS, 10))
        small, large = _body(way, 10), _body(way, prompt)
        for number in range(2):  # what is made once is made now
            await asyncio.to_thread(_ask, address, way, small, f"small-{number}")
        tasks = await _tasks()
        before = traced(), large_objects(), resident()
        answers = Counter([await asyncio.to_thread(_ask, address, way, large, f"large-{n}") for n in range(requests)])
        upstream.requests.clear()
        tasks = await _tasks(tasks) - tasks
        after = traced(), large_objects(), resident()
    kept, prompts, rss = (now - then for now, then in zip(after, before, strict=True))
    return {
        ANSWERS: ", ".join(f"{count} x {answer}" for answer, count in answers.items()),
        KEPT: kept / KIB / requests,
        "prompts": prompts,
        "tasks": tasks,
        "RSS KiB/request": rss / KIB / requests,
    }


def _create_app(way: Way, upstream: ScriptedUpstream) -> Quart:
    app = Quart(__name__)
    options = {"max_streams_per_principal": 1 if way.full else 1000, "linger": 600, "retries": 0, **way.options}
    ai = QuartOpenAISSE(
        app,
        auth=bearer_tokens({"token-ann": "ann"}),
        upstream=lambda _: upstream,
        base_url="http://127.0.0.1:9/v1",
        **known(**options),
    )

    @ai.model("sound")
    async def sound(chat: Any) -> AsyncIterator[str]:
        yield "A whole answer"

    @ai.model("waits")
    async def waits(chat: Any) -> AsyncIterator[str]:
        yield "Half an answer"
        await asyncio.Event().wait()

    @ai.model("raises")
    async def raises(chat: Any) -> AsyncIterator[str]:
        raise RuntimeError("at once")
        yield ""

    @ai.model("raises later")
    async def raises_later(chat: Any) -> AsyncIterator[str]:
        yield "Half an answer"
        raise RuntimeError("later")

    return app


async def _refuse() -> None:
    """A new exception for each request: the traceback of a common one would hold all of them."""
    raise refused(400)


async def _tasks(wanted: int | None = None) -> int:
    """The number of tasks: once there are at most so many as *wanted*, or else once the number stays the same."""
    loop = asyncio.get_running_loop()
    deadline, numbers = loop.time() + 10, [-1]
    while loop.time() < deadline:
        numbers.append(len(asyncio.all_tasks()))
        if len(set(numbers[-4:])) == 1 if wanted is None else numbers[-1] <= wanted:
            break
        await asyncio.sleep(0.1)
    return numbers[-1]


# The client, in threads: what it needs is freed with its connection -------------------------------------------------


def _body(way: Way, prompt: int) -> bytes:
    messages = [{"role": "user", "content": "x" * prompt}]
    return json.dumps({"model": way.model, "messages": messages, "stream": way.stream}).encode()


def _ask(address: str, way: Way, body: bytes, number: str = "") -> str:
    """Sends the request and reads the response, and that of the stream which it started. How it ended."""
    headers = {"Content-Type": "application/json", **way.headers, **({"Idempotency-Key": number} if way.key else {})}
    status, location, response = _exchange(address, "POST", way.route, body, headers)
    if location and way != WAITS:
        _, _, response = _exchange(address, "GET", location, b"", EVENTS)
    return f"{status} {_outcome(response)}".strip()


def _exchange(address: str, method: str, route: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        all_headers = {"Authorization": "Bearer token-ann", "Connection": "close", **headers}
        connection.request(method, route, body, all_headers)
        response = connection.getresponse()
        location = (response.getheader("Location") or "") if response.status == 201 else ""
        return response.status, location, response.read()
    finally:
        connection.close()


def _outcome(response: bytes) -> str:
    if b'"code":"' in response:
        return response.partition(b'"code":"')[2].partition(b'"')[0].decode()
    return "completed" if b"event: completed" in response or b"[DONE]" in response else ""


# Print --------------------------------------------------------------------------------------------------------------

CASES: Mapping[str, Case] = {name: partial(held, way) for name, way in WAYS.items()}


async def run(write: Callable[[str], object], packages: Sequence[Path]) -> bool:
    """Prints the table; whether no request of the last build left behind more than `AT_MOST`."""
    with staged(packages) as builds:
        figures = [(build.name, await measure("held", list(CASES), build, at_once=2)) for build in builds]
    write(f"{REQUESTS} requests with prompts of {PROMPT // MIB} MiB, one after the other\n\n")
    for line in table("how the request fails", COLUMNS, figures):
        write(f"{line}\n")
    _, last = figures[-1]
    over = [name for name, each in last.items() if not each.get(KEPT, AT_MOST + 1) <= AT_MOST]
    write(f"\n{len(last) - len(over)} of {len(last)} ways leave at most {AT_MOST:g} KiB per request\n")
    return not over
