"""Failover: three upstreams, one dead, one slow, one that breaks after its preamble; request after request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from quart_openai_sse.upstreams.breaker import BreakerState
from tests.chaos import load
from tests.chaos.app import ChaosApp, chaos_app
from tests.chaos.upstream import UNCONNECTED, chaos_upstream
from tests.chaos.wire import HEAD, ROLE, Window, chunked
from tests.raw import Hangup, Peer, raw_upstream

SLOW = 0.3
"""Seconds until a slow one is given up."""
RESET = 1.0


class Step(NamedTuple):
    """One request."""

    answer: str
    attempts: int
    failures: tuple[str, ...]
    upstream: str
    """Who answered."""
    breakers: dict[str, BreakerState]
    """Afterwards."""


async def slow(peer: Peer) -> None:
    """A preamble, and nothing more."""
    await peer.send(HEAD + chunked(ROLE))
    await peer.gone()
    raise Hangup


@asynccontextmanager
async def three() -> AsyncIterator[ChaosApp]:
    """An app before the three, each a fallback of the one before."""

    async def breaks_once(peer: Peer) -> None:
        if len(flaky.requests) == 1:
            await peer.send(HEAD + chunked(ROLE) + b"ff\r\nhalf")
            raise Hangup
        await peer.send(Window.BEFORE.closing())

    async with raw_upstream(slow) as tardy, raw_upstream(breaks_once) as flaky, chaos_upstream() as other:
        [dead] = [each["base_url"] for each in other.upstreams if each.get("models") == UNCONNECTED[:1]]
        upstreams = [
            {"name": "dead", "base_url": dead},
            {"name": "slow", "base_url": tardy.base_url},
            {"name": "flaky", "base_url": flaky.base_url},
        ]
        options = {"first_output_timeout": SLOW, "breaker_failures": 2, "breaker_reset": RESET}
        async with chaos_app(upstreams=upstreams, **options) as app:
            yield app


async def step(app: ChaosApp, number: int) -> Step:
    """Sends request *number*, from 1."""
    answer = await load.ask(app.address, "any")
    record = await app.record("ended", number)
    assert app.relay is not None
    breakers = {each.name: each.breaker.state for each in app.relay.upstream.candidates}
    return Step(f"{answer.status} {answer.outcome}", record.attempts, record.failures, record.upstream, breakers)


async def steps() -> list[Step]:
    """Three requests; then, when those that were spared may be tried again, a fourth."""
    async with three() as app:
        seen = [await step(app, number) for number in (1, 2, 3)]
        await asyncio.sleep(RESET + 0.1)
        return [*seen, await step(app, 4)]


async def run(write: Callable[[str], object]) -> bool:
    """Prints the table; whether every request was answered."""
    seen = await steps()
    for number, each in enumerate(seen, 1):
        write(f"request {number}: {each.answer} by {each.upstream}, {each.attempts} attempts\n")
        for failure in each.failures:
            write(f"    failed  {failure}\n")
        states = ", ".join(f"{name} {state.name.lower().replace('_', '-')}" for name, state in each.breakers.items())
        write(f"    breakers afterwards: {states}\n")
    failed = sum(each.answer != "200 completed" for each in seen)
    write(f"\n{len(seen) - failed} passed, {failed} failed\n")
    return not failed
