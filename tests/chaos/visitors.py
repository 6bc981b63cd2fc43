"""What a client does on its socket, once it has asked: leave at a moment, read little, half-close, pipeline."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.chaos.app import ChaosApp, until
from tests.conftest import ANN, QUESTION


@dataclass
class Visitor:
    """A connection to a chaos app."""

    app: ChaosApp
    model: str
    stream: bool
    route: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    left: float | None = None
    """When it went, or stopped saying that it was there."""

    @classmethod
    async def come(cls, app: ChaosApp, model: str, *, stream: bool, route: str) -> Visitor:
        host, _, port = app.address.rpartition(":")
        # A small buffer: asyncio's streams read of themselves until it is full.
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 12)
        return cls(app, model, stream, route, reader, writer)

    @property
    def request(self) -> tuple[bytes, bytes]:
        """The head and the body of what it asks."""
        body = json.dumps({"model": self.model, "messages": QUESTION, "stream": self.stream}).encode()
        head = (
            f"POST {self.route} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {ANN['Authorization']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nAccept: text/event-stream\r\n\r\n"
        )
        return head.encode(), body

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self) -> None:
        await self.send(b"".join(self.request))

    async def sees(self, *wanted: bytes) -> bytes:
        """All that comes until each of these has been seen in it, one after the other."""
        data, place = b"", 0
        for each in wanted:
            while (found := data.find(each, place)) < 0:
                piece = await self.reader.read(1 << 16)
                assert piece, f"{each!r} is not in {data!r}"
                data += piece
            place = found + len(each)
        return data

    def leave(self) -> None:
        self.writer.transport.abort()
        self.left = time.monotonic()


Habit = Callable[[Visitor], Awaitable[None]]
HEADERS_END = b"\r\n\r\n"


def leaves(when: Habit) -> Habit:
    """Asks, and leaves at this moment."""

    async def habit(visitor: Visitor) -> None:
        await visitor.ask()
        await when(visitor)
        visitor.leave()

    return habit


# Moments ------------------------------------------------------------------------------------------------------------


async def started(visitor: Visitor) -> None:
    await visitor.app.record("started")


async def retried(visitor: Visitor) -> None:
    await visitor.app.record("retried")


async def asked(visitor: Visitor) -> None:
    """The upstream has the request."""
    assert await until(lambda: visitor.app.upstream.busy > 0, patience=30)


async def committed(visitor: Visitor) -> None:
    """The 200 has come, and a comment, but no output."""
    assert b"data:" not in await visitor.sees(HEADERS_END, b":")


async def output(visitor: Visitor) -> None:
    await visitor.sees(HEADERS_END, b"half")


async def backed_up(visitor: Visitor) -> None:
    """The app's upstream is paused, because nobody reads."""

    def paused() -> bool:
        return any(each.size >= visitor.app.log.high_water for each in visitor.app.log._streams.values())

    assert await until(lambda: visitor.app.log is not None and paused(), patience=30)


# Habits -------------------------------------------------------------------------------------------------------------


async def half_closes(visitor: Visitor) -> None:
    await visitor.ask()
    await output(visitor)
    visitor.writer.write_eof()
    visitor.left = time.monotonic()


async def reads_nothing(visitor: Visitor) -> None:
    await visitor.ask()


async def reads_by_the_byte(visitor: Visitor) -> None:
    """A byte now and then, until the stream is over."""
    await visitor.ask()
    ended = asyncio.ensure_future(visitor.app.record("ended"))
    while not ended.done():
        await visitor.reader.readexactly(1)
        await asyncio.wait({ended}, timeout=0.1)


async def pipelines(visitor: Visitor) -> None:
    """Asks twice at once, and reads both answers."""
    await visitor.send(b"".join(visitor.request) * 2)
    await visitor.sees(HEADERS_END, b"[DONE]", HEADERS_END, b"[DONE]")


async def pipelines_and_leaves(visitor: Visitor) -> None:
    await visitor.send(b"".join(visitor.request) * 2)
    await output(visitor)
    visitor.leave()


async def asks_slowly(visitor: Visitor) -> None:
    """A request in many pieces."""
    for byte in b"".join(visitor.request):
        await visitor.send(bytes([byte]))
    await visitor.sees(HEADERS_END, b"[DONE]")


async def stops_within_its_body(visitor: Visitor) -> None:
    head, body = visitor.request
    await visitor.send(head + body[:10])
    await visitor.sees(b" 408 ", b'"request_timeout"')


async def leaves_within_its_body(visitor: Visitor) -> None:
    head, body = visitor.request
    await visitor.send(head + body[:10])
    visitor.leave()
