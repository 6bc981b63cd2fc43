"""The upstream that does everything wrong: the model's name says what, and when."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.actions import Action, for_ever, sound
from tests.chaos.faults import FAULTS, cells
from tests.chaos.statuses import FORMS, STATUSES, response
from tests.chaos.wire import HEAD, OUTPUT, Window, chunked
from tests.raw import Peer, RawServer, raw_upstream

UNCONNECTED = ("refuses the connection @ BEFORE", "accepts no connection @ BEFORE")
"""The models whose upstream never sees a request."""
PLAIN: dict[str, Action] = {"sound": sound, "flood": for_ever(chunked(OUTPUT * 300), pause=0)}
"""Models that break nothing."""
MODELS = {
    *PLAIN,
    *(cell.model for cell in cells()),
    *(f"status {status} {form}" for status in STATUSES for form in FORMS),
}


@dataclass
class Exchange:
    """A request that has reached the upstream. Times are of the monotonic clock."""

    model: str
    peer: Peer
    over: float | None = None
    whole: bool = False
    """Whether the upstream has said all it wanted, and kept the connection."""


@dataclass
class ChaosUpstream:
    """What reached it, and what an app needs to reach it."""

    upstreams: list[dict[str, Any]] = field(default_factory=list)
    """The option `upstreams` of an app: this server, a port where nobody listens, a listener that accepts nothing."""
    exchanges: list[Exchange] = field(default_factory=list)
    server: RawServer = field(default_factory=RawServer)
    busy: int = 0
    """How many requests it is answering."""

    async def answer(self, peer: Peer) -> None:
        """Does what the model's name says."""
        exchange = Exchange(json.loads(peer.body)["model"], peer)
        self.exchanges.append(exchange)
        self.busy += 1
        try:
            await _misbehave(peer, exchange.model)
            exchange.whole = True
        finally:
            exchange.over = time.monotonic()
            self.busy -= 1


async def _misbehave(peer: Peer, model: str) -> None:
    name, _, window = model.partition(" @ ")
    if model.startswith("status "):
        _, status, form = model.split(" ", 2)
        await peer.send(response(int(status), form))
    elif name in PLAIN:
        await peer.send(HEAD)
        await PLAIN[name](peer, Window.HEADERS)
    else:
        fault = FAULTS[name]
        await peer.send(Window[window].opening(fault.head))
        await fault.does(peer, Window[window])


@asynccontextmanager
async def chaos_upstream() -> AsyncIterator[ChaosUpstream]:
    """A chaos upstream, until the block is left."""
    upstream = ChaosUpstream()
    with ExitStack() as stack:
        closed, full = stack.enter_context(_bound()), stack.enter_context(_full())
        async with raw_upstream(upstream.answer) as upstream.server:
            upstream.upstreams = [
                {"name": "chaos", "base_url": upstream.server.base_url, "models": MODELS - set(UNCONNECTED)},
                {"name": "closed", "base_url": closed, "models": UNCONNECTED[:1]},
                {"name": "full", "base_url": full, "models": UNCONNECTED[1:]},
            ]
            yield upstream


@contextmanager
def _bound() -> Iterator[str]:
    """The address of a port that is taken, and where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


@contextmanager
def _full() -> Iterator[str]:
    """The address of a listener whose queue is full: a connection is neither made nor refused."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
