"""Workers of the example app, as processes, behind a proxy that sends each request to the next one of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from quart_openai_sse.simulator import Simulator, serve_simulator

ROOT = Path(__file__).parents[1]


@dataclass
class RoundRobin:
    """A proxy that has each request on a connection of its own."""

    ports: list[int] = field(default_factory=list)
    """Where the workers are."""
    url: str = ""
    reads: list[tuple[int, str]] = field(default_factory=list)
    """The requests that read a stream: the worker's place, and the head."""
    _turn: int = 0
    _reading: set[StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def readers(self) -> set[int]:
        """The places of the workers at which streams were read."""
        return {place for place, _ in self.reads}

    def hang_up(self) -> None:
        """Cuts the responses that read a stream."""
        for writer in list(self._reading):
            writer.transport.abort()

    async def connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection, until one side closes it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._pass(reader, writer)
        finally:
            self._reading.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pass(self, reader: StreamReader, writer: StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        place = self._turn % len(self.ports)
        self._turn += 1
        if re.match(r"GET /v1/streams/\w", head):
            self.reads.append((place, head))
            self._reading.add(writer)
        from_worker, to_worker = await asyncio.open_connection("127.0.0.1", self.ports[place])
        to_worker.write(re.sub(r"(?i)\r\nconnection:[^\r]*", "\r\nConnection: close", head).encode("latin-1"))
        ways = [
            asyncio.ensure_future(_copy(reader, to_worker)),
            asyncio.ensure_future(_copy(from_worker, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if ways[1].done() and not writer.is_closing():
                writer.close()
                await writer.wait_closed()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            to_worker.transport.abort()

    async def aclose(self) -> None:
        """Ends all connections."""
        for task in (tasks := list(self._tasks)):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _copy(source: StreamReader, sink: StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()


@dataclass
class SharedSite:
    """The example app on two workers."""

    simulator: Simulator
    proxy: RoundRobin

    @property
    def url(self) -> str:
        """Where a page finds it: at the proxy."""
        return self.proxy.url


@asynccontextmanager
async def serve_workers(folder: Path, log: str, *, model: str, workers: int = 2) -> AsyncIterator[SharedSite]:
    """Serves it; *log* is where its streams are kept."""
    async with AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(serve_simulator())
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OPENAI_API_KEY": "none",
            "OPENAI_BASE_URL": simulator.base_url,
            "OPENAI_MODEL": model,
            "EXAMPLE_DATABASE": str(folder / "chat.db"),
            "EXAMPLE_SECRET_KEY": "the same for all workers",
            "QUART_OPENAI_SSE_RETRY": "1",
        }
        proxy = RoundRobin([await stack.enter_async_context(_worker(log, environment)) for _ in range(workers)])
        server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        stack.push_async_callback(proxy.aclose)
        stack.callback(server.close)
        yield SharedSite(simulator, proxy)


@asynccontextmanager
async def _worker(log: str, environment: dict[str, str]) -> AsyncIterator[int]:
    """A process; its port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "example_app", "--port", "0", "--drain-timeout", "0", "--log", log),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        address = re.search(rb"http://127\.0\.0\.1:(\d+)/", await process.stdout.readline())
        assert address, "the example has ended"
        yield int(address[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
