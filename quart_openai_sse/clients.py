"""How a request goes out: the protocol, and the way over our own transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

import httpx

from quart_openai_sse.config import Config
from quart_openai_sse.transport import create_transport

T = TypeVar("T")
Push = Callable[[Callable[[bytes], bool]], Awaitable[bool]]
"""Gives a function the bytes of a body as they come: `False` if that did not want more, `True` at the end."""

WRITE_TIMEOUT = 30.0
REST = 0.1
"""Seconds that a body has to end, once nothing more is wanted of it."""

_PushTransport = create_transport(httpx)
_url = lru_cache(maxsize=64)(httpx.URL)  # they take long to parse, and are few


class Outgoing(NamedTuple):
    """A request to be sent."""

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes = b""


class Client(Protocol):
    """Sends requests; when one is cancelled, its connection is closed and its place free."""

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """What *function* returns, within which requests are sent and their responses closed."""
        ...

    async def send(self, outgoing: Outgoing) -> Any:
        """The response, as httpx has them, when its head has come."""
        ...

    async def finish(self, push: Push) -> None:
        """Gives a body the time to end, if it does so at once: then its connection can be used again."""
        ...

    async def aclose(self) -> None:
        """Closes its connections."""
        ...


class DirectClient:
    """The way over our own transport, which needs no help."""

    def __init__(self, config: Config) -> None:
        self.transport = _PushTransport(
            trust_env=config.trust_env,
            max_connections=config.max_connections,
            max_keepalive_connections=config.max_keepalive_connections,
            keepalive_expiry=config.keepalive_expiry,
        )
        connect = config.connect_timeout
        timeouts = {"connect": connect, "read": None, "write": WRITE_TIMEOUT, "pool": connect}
        # A kept connection may turn out to be closed. A request that got no byte in answer is sent again then, as
        # browsers do it: RFC 9110, 9.2.2, would have us know that the server has not acted on it, which nobody can.
        self._extensions = {"timeout": timeouts, "resend": True}

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """See `Client.run`."""
        return await function()

    async def send(self, outgoing: Outgoing) -> Any:
        """See `Client.send`. Goes past `httpx.AsyncClient`, whose cookies, redirects and hooks are of no use here."""
        method, address, headers, content = outgoing
        url = _url(address)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        if "host" not in map(str.lower, headers):
            raw.insert(0, (b"Host", url.netloc))
        if content:
            raw.append((b"Content-Length", b"%d" % len(content)))
        stream = httpx.ByteStream(content)
        request = httpx.Request(method, url, headers=raw, stream=stream, extensions=self._extensions)
        return await self.transport.handle_async_request(request)

    async def finish(self, push: Push) -> None:
        """See `Client.finish`."""
        with suppress(Exception):  # the answer is complete, whatever the connection does now
            async with asyncio.timeout(REST):
                await push(_discard)

    async def aclose(self) -> None:
        """See `Client.aclose`."""
        await self.transport.aclose()


@asynccontextmanager
async def pushing(response: Any) -> AsyncIterator[Push]:
    """A function that pushes the body of *response*: our transport has one, for any other the body is iterated."""
    if push := response.extensions.get("push"):
        yield push
        return
    async with aclosing(response.aiter_raw()) as pieces:

        async def push_pieces(feed: Callable[[bytes], bool]) -> bool:
            async for data in pieces:
                if not feed(data):
                    return False
            return True

        yield push_pieces


def _discard(data: bytes) -> bool:
    return True
