"""Clients on plain sockets: requests that must be answered in time, and readers that note all that they saw."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from quart_openai_sse.protocol.sse import ServerSentEvent, SSEDecoder
from tests.chaos.shared.worker import TOKEN

PATIENCE = 25.0
"""Seconds after which a request counts as hung."""
STREAMS, CHAT = "/v1/streams", "/v1/chat/completions"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Reply(NamedTuple):
    """What came of one request. The status is 0 if the connection failed or nothing came in time."""

    status: int
    seconds: float
    body: Any = None

    def __str__(self) -> str:
        return f"{self.status or 'cut'} in {self.seconds:.1f} s"


async def request(port: int, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    """Sends a request, and reads the whole response."""
    began = time.monotonic()
    status, data = 0, b""
    try:
        async with asyncio.timeout(PATIENCE), connected(port) as (reader, writer):
            writer.write(_head(method, path, body, **headers))
            status = await _status(reader)
            data = await reader.read()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        status = 0
    seconds = time.monotonic() - began
    try:
        return Reply(status, seconds, json.loads(data))
    except ValueError:
        return Reply(status, seconds, data)


async def start(port: int, model: str, **headers: str) -> Reply:
    """Starts a stream that can be resumed."""
    return await request(port, "POST", STREAMS, {"model": model, "messages": question(model)}, **headers)


async def call(port: int, model: str) -> Reply:
    """A plain call, which the store has nothing to do with."""
    return await request(port, "POST", CHAT, {"model": model, "messages": question(model), "stream": True})


def question(model: str) -> list[dict[str, str]]:
    """What is asked: something else of each model."""
    return [{"role": "user", "content": model}]


@dataclass
class Reading:
    """What one client has seen of a stream, in all of its responses."""

    stream: str
    """Its path."""
    text: str = ""
    last: str = ""
    """The last event id."""
    outcome: str = ""
    """`completed`, `stopped`, or the code of the failure; empty: not ended yet."""
    responses: int = 0
    statuses: list[int] = field(default_factory=list)
    """Those that were not 200."""
    wrong: list[str] = field(default_factory=list)
    silence: float = 0.0
    """The longest time in one response without a byte."""
    ended: float = 0.0
    """When its end came."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the first event."""

    async def attempt(self, port: int) -> Reply:
        """Resumes it, up to the first event."""
        began, count = time.monotonic(), len(self.statuses)
        await self.follow(port, events=1)
        return Reply((self.statuses[count:] or [200])[0], time.monotonic() - began)

    async def to_the_end(self, ports: Callable[[], int], *, patience: float = 60) -> None:
        """Reads it to its end, at one worker after the other, and again whenever it is cut or refused."""
        try:
            async with asyncio.timeout(patience):
                while not self.outcome and not self.wrong:
                    await self.follow(ports())
                    if not self.outcome:
                        await asyncio.sleep(0.1)
        except TimeoutError:
            self.wrong.append(f"not ended after {patience:g} s")

    async def follow(self, port: int, *, events: float = float("inf")) -> None:
        """Reads from behind the last event: to the end, until so many events have come, or until it is cut."""
        headers = {"Last-Event-ID": self.last} if self.last else {}
        try:
            async with connected(port) as (reader, writer):
                writer.write(_head("GET", self.stream, **headers))
                async with asyncio.timeout(PATIENCE):
                    status = await _status(reader)
                if status != 200:
                    self._refused(status)
                    return
                self.responses += 1
                await self._read(reader, events)
        except (OSError, asyncio.IncompleteReadError):
            pass
        except TimeoutError:
            self.wrong.append(f"nothing came for {PATIENCE:g} s")

    async def _read(self, reader: asyncio.StreamReader, events: float) -> None:
        decoder, seen, before = SSEDecoder(), 0, time.monotonic()
        while seen < events and not self.outcome:
            async with asyncio.timeout(PATIENCE):  # a comment comes at the latest
                data = await reader.read(1 << 16)
            now = time.monotonic()
            self.silence, before = max(self.silence, now - before), now
            if not data:
                return
            for event in decoder.feed(data):
                seen += 1
                self._take(event)
                self.begun.set()
                if seen >= events:
                    return

    def _take(self, event: ServerSentEvent) -> None:
        if event.id is not None and event.id.isdigit():
            if int(event.id) <= int(self.last or 0):
                self.wrong.append(f"id {event.id} after {self.last}")
            self.last = event.id
        if event.event in ("completed", "stopped", "failed"):
            self.ended = time.monotonic()
        match event.event:
            case "delta":
                self.text += json.loads(event.data)["text"]
            case "completed" | "stopped":
                self.outcome = event.event
            case "failed":
                self.outcome = json.loads(event.data)["error"]["code"]

    def _refused(self, status: int) -> None:
        self.statuses.append(status)
        if status == 204:  # it has the end already
            return
        if status != 503:
            self.wrong.append(f"{status} after id {self.last or 'none'}")


def _head(method: str, path: str, body: Any = None, **headers: str) -> bytes:
    """With HTTP/1.0, a response is its bytes until the connection is closed."""
    data = b"" if body is None else json.dumps(body).encode()
    fields = {"Host": "localhost", "Authorization": f"Bearer {TOKEN}", "Content-Length": str(len(data)), **headers}
    if data:
        fields["Content-Type"] = "application/json"
    lines = [f"{method} {path} HTTP/1.0", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + data


async def _status(reader: asyncio.StreamReader) -> int:
    return int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """A connection, which is cut at the end of the block."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
