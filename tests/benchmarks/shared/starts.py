"""The tables of starts and stops over HTTP, where the API is in this process, so that it sees its own requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
from redis.asyncio import Redis as Client

from tests.benchmarks.harness import TOKEN
from tests.benchmarks.measure import Sample
from tests.benchmarks.shared.bare import percentiles
from tests.benchmarks.shared.text import chunks
from tests.benchmarks.shared.workers import MEMORY, REDIS, SQLITE, Deployment, deployed

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}
FINISH = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1741570283,"model":"gpt-4o-mini",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)


class Upstream:
    """An API that waits before its first event, and then ends, or goes on until its connection is closed."""

    def __init__(self) -> None:
        self.wait, self.endless = 0.0, False
        self.closed: asyncio.Queue[float] = asyncio.Queue()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request on each connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(self.wait)
            event = b"data: " + chunks(1)[0] + b"\n\n"
            writer.write(HEAD + event)
            if self.endless:
                gone = asyncio.ensure_future(reader.read())
                while not gone.done():
                    writer.write(event)
                    await asyncio.wait([gone], timeout=0.05)
                self.closed.put_nowait(time.monotonic())
                gone.exception()  # a connection may be closed before all of it was read
            else:
                await asyncio.sleep(self.wait)
                writer.write(FINISH)
        writer.close()


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Upstream, str]]:
    """An upstream, and its base URL."""
    upstream = Upstream()
    server = await asyncio.start_server(upstream.answer, "127.0.0.1", 0)
    async with server:
        yield upstream, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def stops(number: int, cache: Path, *, count: int) -> AsyncIterator[Sample]:
    """From a DELETE at another worker until the upstream's connection is closed."""
    async with listening() as (upstream, url), httpx.AsyncClient(timeout=30, headers=AUTHORIZATION) as client:
        upstream.endless = True
        for way in (REDIS, SQLITE):
            async with deployed(way, url, cache, workers=2) as deployment:
                taken = [
                    await _stop(client, deployment, upstream, f"{way.name}-{place}") * 1e3 for place in range(count)
                ]
            yield Sample(f"{way.name} log, a stop elsewhere", "stops", number, percentiles(taken[3:]))


async def _stop(client: httpx.AsyncClient, deployment: Deployment, upstream: Upstream, key: str) -> float:
    first, second = deployment.addresses
    async with client.stream(
        "POST", f"http://{first}/v1/chat/completions", json=_body(), headers={"Idempotency-Key": key}
    ) as response:
        pieces = response.aiter_raw()
        await anext(pieces)
        await asyncio.sleep(0.03)
        begin = time.monotonic()
        stopped = await client.delete(f"http://{second}/v1/streams/{response.headers['X-Stream-Id']}")
        stopped.raise_for_status()
        async with asyncio.timeout(10):
            closed = await upstream.closed.get()
        async for _ in pieces:
            pass
    return closed - begin


async def starts(number: int, cache: Path, *, count: int) -> AsyncIterator[Sample]:
    """From a request to its first event, and the commands that Redis gets for it."""
    async with listening() as (upstream, url), httpx.AsyncClient(timeout=30, headers=AUTHORIZATION) as client:
        for way in (MEMORY, REDIS, SQLITE):
            async with deployed(way, url, cache) as deployment:
                for kept in (True, False):
                    name = f"{way.name} log, {'Idempotency-Key' if kept else 'kept, without a key'}"
                    upstream.wait = 0.0
                    taken = [
                        await _start(client, deployment, f"{way.name}-{place}" if kept else "") * 1e3
                        for place in range(count)
                    ]
                    figures = percentiles(taken[10:])
                    if way is REDIS:
                        upstream.wait = 0.3
                        figures |= await _commands(client, deployment, f"{way.name}-watched" if kept else "")
                    yield Sample(name, "starts", number, figures)


async def _start(client: httpx.AsyncClient, deployment: Deployment, key: str) -> float:
    path = "/v1/chat/completions" if key else "/v1/streams"
    headers = {"Accept": "text/event-stream"} | ({"Idempotency-Key": key} if key else {})
    begin = time.monotonic()
    async with client.stream(
        "POST", f"http://{deployment.addresses[0]}{path}", json=_body(), headers=headers
    ) as response:
        assert response.status_code == 200, await response.aread()
        pieces = response.aiter_raw()
        await anext(pieces)
        taken = time.monotonic() - begin
        async for _ in pieces:
            pass
    return taken


async def _commands(client: httpx.AsyncClient, deployment: Deployment, key: str) -> dict[str, float]:
    """How many commands come before the upstream answers, and until the stream has ended."""
    seen: list[tuple[float, str]] = []
    await asyncio.sleep(5)  # what is done for earlier streams now and then is over

    def note(address: str) -> None:
        seen.append((time.monotonic(), address))

    async def watch(ready: asyncio.Event) -> None:
        redis: Client = Client.from_url(deployment.redis.address)
        async with redis, redis.monitor() as monitor:
            ready.set()
            async for command in monitor.listen():
                note(command["client_type"] if command["client_type"] == "lua" else command["client_port"])

    ready = asyncio.Event()
    watching = asyncio.ensure_future(watch(ready))
    await ready.wait()
    begin = time.monotonic()
    await _start(client, deployment, key)
    await asyncio.sleep(0.3)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    sent = [each for each in seen if each[1] != "lua"]  # not those that a script runs
    early = [each for each in sent if each[0] < begin + 0.25]
    # What comes over one connection without a pause is one round trip.
    trips = sum(
        place == 0 or early[place - 1][1] != address or at - early[place - 1][0] > 0.0005
        for place, (at, address) in enumerate(early)
    )
    return {"trips": float(trips), "before": float(len(early)), "whole": float(len(sent))}


def _body() -> dict[str, object]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How far?"}], "stream": True}
