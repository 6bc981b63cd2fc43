"""Failover: three upstreams, one dead, one slow, one that breaks after its preamble; then three that refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from quart_openai_sse.upstreams.breaker import BreakerState
from tests.chaos import load
from tests.chaos.app import ChaosApp, chaos_app
from tests.chaos.faults import ATTEMPTS
from tests.chaos.statuses import KINDS, Kind, refusal
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


# Three that refuse ----------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What came of one request to three upstreams."""

    seen: str
    """What the caller saw."""
    asked: tuple[int, int, int]
    """How often each was asked."""
    breaker: BreakerState
    """The first one's, which opens with one failure."""

    @property
    def attempts(self) -> int:
        return sum(self.asked)


async def refused(kind: Kind, *, by: int) -> Outcome:
    """Asks three upstreams; the first *by* of them refuse as *kind* says, and the others answer."""

    async def refuse(peer: Peer) -> None:
        await peer.send(refusal(kind))

    async def answer(peer: Peer) -> None:
        await peer.send(Window.BEFORE.closing())

    async with AsyncExitStack() as stack:
        handlers = [refuse if place < by else answer for place in range(3)]
        servers = [await stack.enter_async_context(raw_upstream(handler)) for handler in handlers]
        upstreams = [{"name": str(place), "base_url": each.base_url} for place, each in enumerate(servers)]
        app = await stack.enter_async_context(chaos_app(upstreams=upstreams, breaker_failures=1, breaker_reset=3600))
        got = await load.ask(app.address, "any")
        await app.record("ended")
        assert app.relay is not None
        one, two, three = (len(each.requests) for each in servers)
        return Outcome(f"{got.status} {got.outcome}", (one, two, three), app.relay.upstream.candidates[0].breaker.state)


def expected(kind: Kind, *, by: int) -> Outcome:
    """What is to come of it."""
    breaker = BreakerState.OPEN if kind.counts else BreakerState.CLOSED
    told = "{} {}".format(*kind.told)
    if not kind.elsewhere:
        return Outcome(told, (1, 0, 0), breaker)
    if by < 3:
        return Outcome("200 completed", (1, 1, 1), breaker)
    times = ATTEMPTS if kind.again else 1
    return Outcome(told, (times, times, times), breaker)


async def run(write: Callable[[str], object]) -> bool:
    """Prints the tables; whether every request was answered, or refused as it should be."""
    return all([await _run_steps(write), await _run_kinds(write)])


async def _run_kinds(write: Callable[[str], object]) -> bool:
    failed = 0
    for by, title in ((2, "two refuse, the third answers"), (3, "all three refuse")):
        write(f"\n{title:32}{'attempts':>9}{'asked':>9}  {'breaker':9}the caller saw\n")
        for name, kind in KINDS.items():
            outcome = await refused(kind, by=by)
            is_right = outcome == expected(kind, by=by)
            failed += not is_right
            asked = " ".join(map(str, outcome.asked))
            write(f"{name:32}{outcome.attempts:9}{asked:>9}  {outcome.breaker.name.lower():9}{outcome.seen}")
            write("\n" if is_right else f"   WRONG, not {expected(kind, by=by)}\n")
    write(f"\n{2 * len(KINDS) - failed} passed, {failed} failed\n")
    return not failed


async def _run_steps(write: Callable[[str], object]) -> bool:
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
