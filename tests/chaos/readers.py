"""Readers that never read: the memory that they take, and when their responses end."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import secrets
import socket
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from quart import Quart

from quart_openai_sse import Config, QuartOpenAISSE, bearer_tokens
from quart_openai_sse.testing import serve_app
from tests.chaos.builds import Case, Figures, known, measure, staged, table
from tests.chaos.memory import KIB, MIB, resident, traced

READERS = 400
OUTPUT = 8 * MIB
PIECES = [secrets.token_urlsafe(48 * KIB) for _ in range(16)]
"""Pieces of output, 64 KiB each. Two that are equal are too far apart for a compressor to see."""
RECEIVE_BUFFER = 4 * KIB
PATIENCE = 20.0
"""Seconds in which responses should end once all readers are there."""
WRITE_TIMEOUT = 8.0
"""The option `write_timeout`, if the build has it."""
MEMORY = 256 * MIB
"""The option `max_memory`, if the build has it."""

CHAT, STREAMS = "/v1/chat/completions", "/v1/streams"
AUTHORIZATION = "Bearer token-ann"


@dataclass
class Watched:
    """An ASGI app, and what became of the requests to it since `watching`."""

    app: Any
    watching: bool = False
    statuses: Counter[int] = field(default_factory=Counter)
    ended: list[float] = field(default_factory=list)
    """The seconds that each response took."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not self.watching:
            await self.app(scope, receive, send)
            return
        began = time.monotonic()

        async def noted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.statuses[message["status"]] += 1
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            self.ended.append(time.monotonic() - began)


@dataclass
class Site:
    """An app with one model, which yields `OUTPUT` bytes once `flowing` is set."""

    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    """Streams."""
    app: Quart = field(default_factory=lambda: Quart(__name__))

    def __post_init__(self) -> None:
        more = {
            each.name: 10 * READERS for each in fields(Config) if each.name.startswith(("max_streams", "max_readers"))
        }
        self.ai = QuartOpenAISSE(
            self.app,
            auth=bearer_tokens({"token-ann": "ann"}),
            base_url="http://127.0.0.1:9/v1",
            **known(**more, linger=600, write_timeout=WRITE_TIMEOUT, max_memory=MEMORY),
        )
        self.ai.model("flood")(self._flood)
        self.ai.observe(self._observe)

    async def _flood(self, chat: Any) -> AsyncIterator[str]:
        await self.flowing.wait()
        for number in range(OUTPUT // len(PIECES[0])):
            yield PIECES[number % len(PIECES)]

    async def _observe(self, event: Any) -> None:
        self.running += {"started": 1, "ended": -1}.get(event.kind, 0)


def counted_memory(site: Site) -> int | None:
    """The bytes that the build itself counts; `None` if it counts none."""
    engine = site.app.extensions["quart_openai_sse"][site.ai.name].engines.current()
    return getattr(getattr(engine, "memory", None), "held", None)


# How the readers come: each function returns the request of every reader ---------------------------------------------


async def whole(site: Site, address: str) -> bytes:
    """One kept stream that has ended."""
    site.flowing.set()
    request = await growing(site, address)
    while site.running:
        await asyncio.sleep(0.1)
    return request


async def growing(site: Site, address: str) -> bytes:
    """One kept stream, whose output begins when all readers are there."""
    return _request("GET", await asyncio.to_thread(_start_stream, address))


async def plain(site: Site, address: str) -> bytes:
    """A stream for each reader, not kept."""
    site.flowing.set()
    return _request("POST", CHAT, _body())


async def kept(site: Site, address: str) -> bytes:
    """A stream for each reader, kept."""
    site.flowing.set()
    return _request("POST", STREAMS, _body())


KINDS: Mapping[str, Callable[[Site, str], Awaitable[bytes]]] = {
    "of one kept stream that has ended": whole,
    "of one kept stream that begins": growing,
    "of a plain stream each": plain,
    "of a kept stream each": kept,
}


# One kind ------------------------------------------------------------------------------------------------------------


async def unread(kind: str) -> Figures:
    """What so many readers that never read cost."""
    tracemalloc.start()
    site = Site()
    watched = Watched(site.app)
    async with serve_app(watched) as address:
        files, before, rss = _files(), traced(), resident()
        request = await KINDS[kind](site, address)
        tracemalloc.reset_peak()
        watched.watching = True
        with ExitStack() as sockets:
            await asyncio.to_thread(_connect, sockets, address, request)
            counted = await _wait(site, watched)
            peak = tracemalloc.get_traced_memory()[1]
            connections = await _connections(files + READERS)
            figures: Figures = {
                "answers": ", ".join(f"{count} x {status}" for status, count in watched.statuses.most_common()),
                "traced peak": (peak - before) / MIB,
                "end": (traced() - before) / MIB,
                "RSS peak": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB - rss) / MIB,
                "counted": None if counted is None else counted / MIB,
                **_ends(sorted(watched.ended)),
                "connections": connections,
                "streams": site.running,
            }
    return figures


async def _wait(site: Site, watched: Watched) -> int | None:
    """Returns after `PATIENCE` seconds, or when all responses have ended; with the highest count of memory."""
    counts = []
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and len(watched.ended) < READERS:
        if watched.statuses.total() >= READERS:
            site.flowing.set()
        counts.append(counted_memory(site))
        await asyncio.sleep(0.2)
    site.flowing.set()
    return max((count for count in counts if count is not None), default=None)


def _ends(seconds: Sequence[float]) -> Figures:
    """When the first, the median and the last reader's response ended."""

    def at(place: int) -> str:
        return f"{seconds[place]:.1f} s" if place < len(seconds) else f"not in {PATIENCE:g} s"

    return {"first": at(0), "median": at(READERS // 2), "last": at(READERS - 1)}


async def _connections(others: int) -> int:
    """The number of connections that the server has: it may take a few seconds until it closes them."""
    deadline = time.monotonic() + 3
    while _files() > others and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return _files() - others


def _files() -> int:
    """The number of this process's open files, which are its sockets."""
    return len(os.listdir("/proc/self/fd"))


# The clients ---------------------------------------------------------------------------------------------------------


def _start_stream(address: str) -> str:
    """Starts a kept stream; its path."""
    connection = http.client.HTTPConnection(address, timeout=30)
    headers = {"Authorization": AUTHORIZATION, "Content-Type": "application/json"}
    connection.request("POST", STREAMS, _body(), headers)
    response = connection.getresponse()
    location = response.getheader("Location") or ""
    response.read()
    connection.close()
    return location


def _connect(sockets: ExitStack, address: str, request: bytes) -> None:
    host, _, port = address.rpartition(":")
    for _ in range(READERS):
        reader = sockets.enter_context(socket.socket())
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        reader.connect((host, int(port)))
        reader.sendall(request)


def _body() -> bytes:
    return json.dumps({"model": "flood", "messages": [{"role": "user", "content": "Hi"}], "stream": True}).encode()


def _request(method: str, path: str, body: bytes = b"") -> bytes:
    headers = {
        "Host": "localhost",
        "Authorization": AUTHORIZATION,
        "Accept": "text/event-stream",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


# Print ---------------------------------------------------------------------------------------------------------------

CASES: Mapping[str, Case] = {kind: partial(unread, kind) for kind in KINDS}
COLUMNS = (
    "answers",
    *("traced peak", "end", "RSS peak", "counted"),
    *("first", "median", "last", "connections", "streams"),
)


async def run(write: Callable[[str], object], packages: Sequence[Path]) -> bool:
    """Prints the table, which has no verdict: what is much depends on the options."""
    with staged(packages) as builds:
        figures = [(build.name, await measure("readers", list(CASES), build, at_once=2)) for build in builds]
    write(f"{READERS} readers that never read {OUTPUT // MIB} MiB of output each; memory in MiB. Connections and\n")
    write(f"streams: those that are open or run 3 s after the last response, or after {PATIENCE:g} s\n\n")
    for line in table(f"{READERS} readers", COLUMNS, figures):
        write(f"{line}\n")
    return True
