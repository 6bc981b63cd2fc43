"""An upstream on a raw socket, which does exactly what a test writes, and tells when its peer has gone."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CLOSING_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
END = b"0\r\n\r\n"

Handler = Callable[["Peer"], Awaitable[None]]


def chunked(data: bytes) -> bytes:
    """*data* in one HTTP/1.1 chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class Peer:
    """One request, as its raw server sees it."""

    head: bytes
    body: bytes
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    waited: float | None = None
    """When the server had nothing more to do than to wait until the peer goes."""
    left: float | None = None
    """When the peer had gone, if it went first."""

    async def send(self, data: bytes) -> None:
        """Sends it in one write."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            self.left = time.monotonic()
            raise

    async def gone(self) -> None:
        """Returns when the peer has closed its side."""
        self.waited = self.waited or time.monotonic()
        try:
            while await self._reader.read(1 << 16):
                pass
        finally:
            if self._reader.at_eof() or self._reader.exception() is not None:
                self.left = time.monotonic()

    async def reset(self) -> NoReturn:
        """Hangs up with a RST instead of a FIN."""
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        raise Hangup


@dataclass
class RawServer:
    """Where it is, what came, and when each connection was closed."""

    base_url: str = ""
    requests: list[Peer] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    """How many of them are open."""
    closed: asyncio.Queue[float] = field(default_factory=asyncio.Queue)
    """The times at which peers closed."""


@asynccontextmanager
async def raw_upstream(handler: Handler) -> AsyncIterator[RawServer]:
    """Serves *handler*, once per request, until the block is left."""
    server = RawServer()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        server.connections += 1
        server.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line.partition(b":")[2])
                        for line in head.split(b"\r\n")
                        if line.lower().startswith(b"content-length")
                    ),
                    0,
                )
                peer = Peer(head, await reader.readexactly(length), reader, writer)
                server.requests.append(peer)
                await handler(peer)
                if b"Connection: close" in head:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            pass
        finally:
            server.open -= 1
            server.closed.put_nowait(time.monotonic())
            writer.close()
            tasks.discard(task)

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    server.base_url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class Hangup(ConnectionError):
    """Raised by a handler to close the connection here and now."""
