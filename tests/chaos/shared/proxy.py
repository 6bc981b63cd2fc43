"""A TCP proxy before a server of the store: it can swallow what it gets, delay it, or lead somewhere else."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class StoreProxy:
    """Where it is, where it leads to, and what it does to bytes."""

    target: int
    """A port."""
    port: int = 0
    delay: float = 0.0
    """Seconds that bytes to the server take."""
    swallowing: bool = False
    _connections: set[StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _dead: set[StreamWriter] = field(default_factory=set)
    """Connections of which something was swallowed: nothing passes them any more."""

    @property
    def url(self) -> str:
        """For a `log` option."""
        return f"redis://127.0.0.1:{self.port}"

    def swallow(self, on: bool) -> None:
        """From now on bytes vanish, both ways; afterwards new connections work, and those of before stay dead."""
        self.swallowing = on
        if on:
            self._dead |= self._connections

    def move(self, target: int) -> None:
        """Leads to another port, and cuts the connections."""
        self.target = target
        for writer in list(self._connections):
            writer.transport.abort()

    async def connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection, until one side closes it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections.add(writer)
        if self.swallowing:
            self._dead.add(writer)
        try:
            with contextlib.suppress(OSError):
                await self._pass(reader, writer)
        finally:
            self._connections.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pass(self, reader: StreamReader, writer: StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection("127.0.0.1", self.target)
        ways = [
            asyncio.ensure_future(self._copy(reader, downstream, writer, slow=True)),
            asyncio.ensure_future(self._copy(upstream, writer, writer, slow=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            downstream.transport.abort()

    async def _copy(self, source: StreamReader, sink: StreamWriter, mine: StreamWriter, *, slow: bool) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if mine in self._dead:
                    continue
                if slow and self.delay:
                    loop.call_later(self.delay, sink.write, data)  # in order, and the next ones meanwhile
                else:
                    sink.write(data)
            if slow and self.delay:
                await asyncio.sleep(self.delay)

    async def aclose(self) -> None:
        """Ends all connections."""
        for task in (tasks := list(self._tasks)):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


@asynccontextmanager
async def store_proxy(target: int) -> AsyncIterator[StoreProxy]:
    """A proxy before this port of loopback."""
    proxy = StoreProxy(target)
    server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.aclose()
