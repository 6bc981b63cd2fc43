"""An app before a chaos upstream, with all that is to be known about it afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from quart import Quart

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.observers import EventKind, StreamEvent, StreamRecord
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.testing import serve_app
from tests.chaos.faults import ATTEMPTS
from tests.chaos.upstream import ChaosUpstream, chaos_upstream
from tests.conftest import TOKENS

RETRY_DELAY = 0.02
RETRY_WAITS = sum(RETRY_DELAY * (1 << retry) for retry in range(ATTEMPTS - 1))
"""Seconds between all attempts of a request."""

OPTIONS: dict[str, Any] = {
    "retries": ATTEMPTS - 1,
    "retry_delay": RETRY_DELAY,
    "commit_after": 30,
    "max_event": 64 << 10,
    "max_bytes": 1 << 20,
    "linger": 0,
    "max_streams_per_principal": 1000,
    "connect_timeout": 30,  # a machine that is busy for three seconds is no fault; a cell about it sets its own
}


@dataclass
class ChaosApp:
    """A running app."""

    address: str
    app: Quart
    ai: QuartOpenAISSE
    upstream: ChaosUpstream
    events: list[StreamEvent] = field(default_factory=list)
    """What its observers were told; each with the record as it was then."""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def base_url(self) -> str:
        return f"http://{self.address}/v1"

    @property
    def relay(self) -> Relay | None:
        """Its engine. There is one once a request has come."""
        return self.app.extensions["quart_openai_sse"][self.ai.name].engines.current()

    @property
    def log(self) -> Any:
        """Its streams' log, a `MemoryLog`."""
        return None if self.relay is None else self.relay.log

    def leftovers(self) -> dict[str, int]:
        """What there is of streams: nothing, once all are over and nobody reads."""
        if (relay := self.relay) is None:
            return {}
        counts = {"streams": len(relay.streams), "slots": relay.admission.slots.taken, "readers": len(relay.readers)}
        return {name: count for name, count in counts.items() if count}

    async def observe(self, event: StreamEvent) -> None:
        async with self._changed:
            self.events.append(StreamEvent(event.kind, replace(event.record)))
            self._changed.notify_all()

    async def record(self, kind: EventKind, number: int = 1) -> StreamRecord:
        """The record at the *number*-th event of this kind; it is waited for."""

        def records() -> list[StreamRecord]:
            return [event.record for event in self.events if event.kind == kind]

        async with self._changed:
            await self._changed.wait_for(lambda: len(records()) >= number)
        return records()[number - 1]


@asynccontextmanager
async def chaos_app(*, body_timeout: float = 60, **options: Any) -> AsyncIterator[ChaosApp]:
    """An app and its upstream, until the block is left. *options* stand above `OPTIONS`."""
    async with chaos_upstream() as upstream:
        app = Quart(__name__)
        app.config["BODY_TIMEOUT"] = body_timeout
        values = {**OPTIONS, "upstreams": upstream.upstreams, **options}
        ai = QuartOpenAISSE(app, auth=bearer_tokens(TOKENS), base_url="http://127.0.0.1:9/v1", **values)
        async with serve_app(app) as address:
            running = ChaosApp(address, app, ai, upstream)
            ai.observe(running.observe)
            _add_models(ai)
            yield running


def _add_models(ai: QuartOpenAISSE) -> None:
    """Two models of the app's own: one that calls an endless stream, and one that waits for a first token."""

    @ai.model("agent")
    async def agent(chat: Any) -> AsyncIterator[Any]:
        async for each in chat.call("an endless stream @ MIDDLE", chat.messages):
            yield each

    @ai.model("silent agent")
    async def silent_agent(chat: Any) -> AsyncIterator[Any]:
        yield (await chat.call("stalls @ PREAMBLE", chat.messages))["content"]


async def until(condition: Callable[[], bool], *, patience: float) -> bool:
    """Whether it came true within so many seconds."""
    deadline = asyncio.get_running_loop().time() + patience
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True
