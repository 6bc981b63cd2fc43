"""After a storm of faulty streams there is as much of everything as before."""

from __future__ import annotations

import asyncio

import pytest

from quart_openai_sse.config import Config
from quart_openai_sse.principal import Principal
from quart_openai_sse.upstreams import Attempt, Headers
from quart_openai_sse.upstreams.openai import OpenAIUpstream
from tests.chaos.app import until
from tests.chaos.leaks import Pooled, leaks
from tests.chaos.upstream import chaos_upstream
from tests.conftest import QUESTION
from tests.raw import Peer, raw_upstream

STREAMS = 300
TURNS = 60
"""Turns of the event loop: more than a whole request takes."""


@pytest.mark.timeout(180)
async def test_a_storm_leaves_nothing_behind() -> None:
    before, after, results = await leaks(STREAMS)
    assert after == before
    assert results.total() == STREAMS
    assert [what for what in results if what.startswith("WRONG")] == []


class Cancelling:
    """A sink that has its task cancelled so many turns of the loop after the end of the stream."""

    started = False
    fed = 0.0

    def __init__(self, turns: int | None) -> None:
        self.task: asyncio.Future[None]
        self._turns = turns

    def begin(self, upstream: str) -> None:
        pass

    def failed(self, attempt: Attempt) -> None:
        pass

    def head(self, status: int, headers: Headers) -> None:
        pass

    def feed(self, data: bytes) -> bool:
        return b"[DONE]" not in data

    async def room(self) -> bool:
        if self._turns is not None:
            self._count_down(self._turns)
        return False

    def finish(self) -> None:
        pass

    def _count_down(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._count_down, turns - 1)
        else:
            self.task.cancel()


async def run(upstream: OpenAIUpstream, *, after_start: int | None = None, after_end: int | None = None) -> None:
    """Asks for a sound answer, and is cancelled so many turns of the loop after its start or its end."""
    sink = Cancelling(after_end)
    body = {"model": "sound", "messages": QUESTION, "stream": True}
    sink.task = asyncio.ensure_future(upstream.run(body, sink, principal=Principal("ann")))
    if after_start is not None:
        for _ in range(after_start):
            await asyncio.sleep(0)
        sink.task.cancel()
    await asyncio.wait({sink.task})


def all_idle(upstream: OpenAIUpstream) -> bool:
    """Whether no connection is in use, and none is waited for."""
    pooled = Pooled.of(upstream)
    return pooled.idle == pooled.connections and pooled.requests == 0


@pytest.mark.parametrize("moment", ["after_start", "after_end"])
async def test_whenever_a_request_is_cancelled_its_connection_is_not_lost(moment: str) -> None:
    """httpcore loses one for good that is about to be made, or just being given back."""
    async with chaos_upstream() as chaos:
        upstream = OpenAIUpstream(Config(base_url=chaos.server.base_url))
        for turns in range(TURNS):
            await run(upstream, **{moment: turns})
        assert await until(lambda: all_idle(upstream), patience=10)
        await upstream.aclose()


async def test_whenever_a_list_of_models_is_given_up_its_connection_is_not_lost() -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"data":[{"id":"a"}]}')

    async with raw_upstream(answer) as server:
        upstream = OpenAIUpstream(Config(base_url=server.base_url))
        for turns in range(TURNS):
            upstream._models = None
            listing = asyncio.ensure_future(upstream.models(principal=Principal("ann")))
            for _ in range(turns):
                await asyncio.sleep(0)
            listing.cancel()
            await asyncio.wait({listing})
        upstream._models = None
        assert await upstream.models(principal=Principal("ann")) == [{"id": "a"}]
        assert await until(lambda: all_idle(upstream), patience=10)
        await upstream.aclose()
