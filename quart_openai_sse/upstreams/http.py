"""HTTP clients for upstreams: the protocol, and the client on our own transport."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import httpx

from quart_openai_sse.config import Config
from quart_openai_sse.flow import MORE, Flow
from quart_openai_sse.transport import Exchange, Feed, Origin, create_transport, find_origin

T = TypeVar("T")
WRITE_TIMEOUT = 30.0  # seconds
REST = 0.1
"""Seconds for which the end of a body is awaited once the rest is not wanted."""

_PushTransport = create_transport(httpx)


class Outgoing(NamedTuple):
    """A request to send."""

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes = b""


class Answer(Protocol):
    """An answer whose head has arrived."""

    status: int

    @property
    def headers(self) -> Mapping[str, str]:
        """By names in lower case."""
        ...

    async def push(self, feed: Feed) -> Flow:
        """Calls *feed* with the body as it arrives, until it returns another `Flow` than `MORE`, and returns that.

        `MORE`: the body has ended.
        """
        ...

    async def finish(self) -> None:
        """Waits a moment for the end of the body, so that the connection can be used again."""
        ...

    async def aclose(self) -> None:
        """Closes the answer, and its connection if the body has not ended."""
        ...


class Client(Protocol):
    """Sends requests. When one is cancelled, its connection is closed, and its place in the pool is free."""

    def run(self, function: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        """The result of *function*, which sends requests and closes their answers."""
        ...

    async def send(self, outgoing: Outgoing) -> Answer:
        """The answer, as soon as its head has arrived. Raises httpx's errors, or those of a client like it."""
        ...

    async def aclose(self) -> None:
        """Closes its connections."""
        ...


def is_unreadable(error: BaseException) -> bool:
    """Whether *error* says that the server has responded, but not with valid HTTP/1.1.

    Then it has an error of the parser as its cause: of httptools, or of h11 in httpx and httpx2. h11 also raises one
    for a body that ends too early, which is not meant here.
    """
    cause: BaseException | None = error if type(error).__name__ == "RemoteProtocolError" else None
    while cause is not None and type(cause).__module__.partition(".")[0] not in ("httptools", "h11"):
        cause = cause.__cause__ or cause.__context__
    return cause is not None and not str(cause).startswith("peer closed connection")


class DirectClient:
    """The client on our own transport. It does not use the client and the objects of httpx."""

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

        If a kept connection turns out to be closed, a request that got no byte in response is sent again, as browsers
        do. RFC 9110, 9.2.2, asks for proof that the server has not acted on the request, which a client cannot have.
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


@lru_cache(maxsize=64)  # parsing an address is slow, and there are few
def _parts(address: str) -> tuple[Origin, bytes, bytes]:
    """The origin of an address, its Host header, and its path with the query."""
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
        found: dict[str, str] = {}
        for raw, value in self._exchange.headers:
            name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
            found[name] = f"{found[name]}, {text}" if name in found else text  # RFC 9110, 5.3
        return found

    async def finish(self) -> None:
        with suppress(Exception):  # the answer is complete in any case
            async with asyncio.timeout(REST):
                await self.push(_discard)

    async def aclose(self) -> None:
        self._exchange.close()


def _discard(data: bytes) -> Flow:
    return MORE
