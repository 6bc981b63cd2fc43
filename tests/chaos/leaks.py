"""Leaks: many mixed faulty streams in one app, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from quart_openai_sse.upstreams.http import DirectClient
from quart_openai_sse.upstreams.httpx_client import HttpxClient
from quart_openai_sse.upstreams.openai import OpenAIUpstream
from tests.chaos import load
from tests.chaos.app import ChaosApp, chaos_app
from tests.chaos.faults import Cell, cells

AT_ONCE = 64
PATIENCE = 30.0
"""Seconds in which everything must be over, after the last stream; and in which each stream must be."""

CELLS = list(cells())


class Pooled(NamedTuple):
    """What there is in an upstream's pool of connections, be it ours or httpcore's."""

    connections: int
    idle: int
    requests: int

    @classmethod
    def of(cls, upstream: OpenAIUpstream) -> Pooled:
        client = upstream._client
        if isinstance(client, DirectClient):
            ours = client.transport._pool
            return cls(len(ours._all), ours._idle_count, len(ours._all) - ours._idle_count + len(ours._waiters))
        assert isinstance(client, HttpxClient)
        theirs = client.client._transport._pool
        idle = sum(each.is_idle() for each in theirs.connections)
        return cls(len(theirs.connections), idle, len(theirs._requests))


def options() -> dict[str, Any]:
    """Short deadlines for the models that run into them, and an app that keeps nothing."""

    def short(code: str) -> dict[str, float]:
        return {cell.model: 0.3 for cell in CELLS if cell.expected.code == code}

    return {
        "first_output_timeouts": short("first_output_timeout"),
        "gap_timeouts": short("gap_timeout"),
        "connect_timeout": 0.3,
        "total_timeout": 3,
        "keepalive_expiry": 0.5,
        "retention": 0,
        "tombstone": 0,
    }


def counts(app: ChaosApp) -> dict[str, int]:
    """What there is in this process, and of the app's streams."""
    relay, log = app.relay, app.log
    assert relay is not None
    pools = [Pooled.of(each.upstream) for each in relay.upstream.candidates]
    return {
        "asyncio tasks": len(asyncio.all_tasks()),
        "file descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "running streams": len(relay.streams),
        "slots taken": relay.admission.slots.taken,
        "readers": len(relay.readers),
        "streams in the log": len(log._streams),
        "bytes in the log": log.size,
        "connections in pools": sum(pool.connections for pool in pools),
        "requests in pools": sum(pool.requests for pool in pools),
        "upstream connections": app.upstream.server.open,
        "requests upstream": app.upstream.busy,
    }


async def settled(app: ChaosApp, wanted: dict[str, int] | None = None) -> dict[str, int]:
    """The counts once they are as *wanted*, or stay the same; a sound request each time lets pools tidy up."""
    deadline = time.monotonic() + PATIENCE
    before: dict[str, int] = {}
    while time.monotonic() < deadline:
        await load.ask(app.address, "sound")
        await asyncio.sleep(0.6)
        now = counts(app)
        if now == (before if wanted is None else wanted):
            return now
        before = now
    return counts(app)


async def one(app: ChaosApp, chance: random.Random, results: Counter[str]) -> None:
    """One stream of any kind; *results* get what came of it."""
    cell = chance.choice(CELLS)
    kind = chance.random()
    members = {"stream": cell.window.stream, "n": cell.fault.n}
    route = "/v1/streams" if kind < 0.2 and cell.window.stream else "/v1/chat/completions"
    if kind > 0.8:
        model = chance.choice([cell.model, cell.model, "flood", "agent", "silent agent", "status 503 1 s"])
        await load.ask(app.address, model, route=route, leave_after=chance.random() * 0.3, **members)
        results["left"] += 1
        return
    answer = await load.ask(app.address, cell.model, route=route, leave_after=PATIENCE, **members)
    results[_verdict(cell, answer)] += 1


def _verdict(cell: Cell, answer: load.Answer) -> str:
    if answer.outcome == "cut":
        return "WRONG: hung, or just cut"
    if answer.outcome == "completed" and cell.expected.code:
        return "WRONG: completed, though broken"
    return answer.outcome if answer.outcome in ("completed", cell.expected.code) else f"{answer.outcome} (under load)"


async def storm(app: ChaosApp, streams: int, results: Counter[str], *, seed: int = 0) -> None:
    """So many streams, `AT_ONCE` at a time."""
    numbers = iter(range(streams))

    async def work(numbers: Iterator[int]) -> None:
        for number in numbers:
            await one(app, random.Random(seed + number), results)

    await asyncio.gather(*(work(numbers) for _ in range(AT_ONCE)))


async def leaks(streams: int) -> tuple[dict[str, int], dict[str, int], Counter[str]]:
    """The counts before and after, and what came of the streams."""
    results: Counter[str] = Counter()
    async with chaos_app(**options()) as app:
        await storm(app, 100, Counter(), seed=1_000_000)  # what is made once is made now
        before = await settled(app)
        await storm(app, streams, results)
        after = await settled(app, before)
    return before, after, results


async def run(write: Callable[[str], object], *, streams: int) -> bool:
    """Prints the counts; whether they are equal and nothing looked complete that was not."""
    began = time.monotonic()
    before, after, results = await leaks(streams)
    write(f"{results.total()} streams in {time.monotonic() - began:.0f} s, {AT_ONCE} at once\n\n")
    for name in before:
        same = "ok" if before[name] == after[name] else "WRONG"
        write(f"{name:24} before {before[name]:6}   after {after[name]:6}   {same}\n")
    write("\nwhat came of them\n")
    for what, count in results.most_common():
        write(f"{what:40} {count:6}\n")
    wrong = sum(count for what, count in results.items() if what.startswith("WRONG"))
    differ = sum(before[name] != after[name] for name in before)
    write(f"\n{len(before) - differ + results.total() - wrong} passed, {differ + wrong} failed\n")
    return not (differ or wrong)
