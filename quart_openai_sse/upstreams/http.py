"""How a request goes out: the protocol, and the way over our own transport."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import httpx

from quart_openai_sse.config import Config
from quart_openai_sse.transport import Exchange, Origin, create_transport, find_origin

T = TypeVar("T")
Feed = Callable[[bytes], bool]
"""Takes a piece of a body; `False`: no more of it now."""

WRITE_TIMEOUT = 30.0
REST = 0.1
"""Seconds that a body has to end, once nothing more is wanted of it."""

_PushTransport = create_transport(httpx)


class Outgoing(NamedTuple):
    """A request to be sent."""

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes = b""


class Answer(Protocol):
    """What comes back: status and headers at once, the body as it is pushed."""

    status: int

    @property
    def headers(self) -> Mapping[str, str]:
        """By their names in lower case."""
        ...

    async def push(self, feed: Feed) -> bool:
        """Gives *feed* the body as it comes: `False` if that did not want more, `True` at the end."""
        ...

    async def finish(self) -> None:
        """Gives the body the time to end, if it does so at once: then its connection can be used again."""
        ...

    async def aclose(self) -> None:
        """Ends it, and its connection if the body has not ended."""
        ...


class Client(Protocol):
    """Sends requests; when one is cancelled, its connection is closed and its place free."""

    def run(self, function: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        """What *function* gives, within which requests are sent and their answers closed."""
        ...

    async def send(self, outgoing: Outgoing) -> Answer:
        """The answer, when its head has come. Raises httpx's errors, or those of a client that resembles it."""
        ...

    async def aclose(self) -> None:
        """Closes its connections."""
        ...


class DirectClient:
    """The way over our own transport, past the client and the objects of httpx, which are of no use here."""

    def __init__(self, config: Config) -> None:
        self.transport = _PushTransport(
            trust_env=config.trust_env,
            max_connections=config.max_connections,
            max_keepalive_connections=config.max_keepalive_connections,
            keepalive_expiry=config.keepalive_expiry,
        )
        connect = config.connect_timeout
        self._timeouts = {"connect": connect, "read": None, "write": WRITE_TIMEOUT, "pool": connect}

    def run(self, function: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        """See `Client.run`."""
        return function()

    async def send(self, outgoing: Outgoing) -> Answer:
        """See `Client.send`.

        A kept connection may turn out to be closed. A request that got no byte in answer is sent again then, as
        browsers do it: RFC 9110, 9.2.2, would have us know that the server has not acted on it, which nobody can.
        """
        method, address, headers, content = outgoing
        origin, host, target = _parts(address)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        if "host" not in map(str.lower, headers):
            raw.insert(0, (b"Host", host))
        if content:
            raw.append((b"Content-Length", b"%d" % len(content)))
        timeouts = self._timeouts
        return _DirectAnswer(
            await self.transport.exchange(method, origin, target, raw, content, timeouts=timeouts, resend=True)
        )

    async def aclose(self) -> None:
        """See `Client.aclose`."""
        await self.transport.aclose()


@lru_cache(maxsize=64)  # addresses take long to parse, and are few
def _parts(address: str) -> tuple[Origin, bytes, bytes]:
    """Where an address is, its Host header, and what is asked for there."""
    url = httpx.URL(address)
    return find_origin(url, httpx), url.netloc, url.raw_path


class _DirectAnswer:
    """See `Answer`."""

    def __init__(self, exchange: Exchange) -> None:
        self.status = exchange.status
        self.push = exchange.push
        self._exchange = exchange

    @property
    def headers(self) -> Mapping[str, str]:
        return _by_name(self._exchange.headers)

    async def finish(self) -> None:
        with suppress(Exception):  # the answer is complete, whatever the connection does now
            async with asyncio.timeout(REST):
                await self.push(_discard)

    async def aclose(self) -> None:
        self._exchange.close()


def _by_name(headers: list[tuple[bytes, bytes]]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for raw, value in headers:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        found[name] = f"{found[name]}, {text}" if name in found else text  # RFC 9110, 5.3
    return found


def _discard(data: bytes) -> bool:
    return True
