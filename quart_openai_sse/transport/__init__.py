"""HTTP/1.1 for streams: a transport for httpx and httpx2 that can push a response's body as it arrives."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from quart_openai_sse.transport.connection import Origin
from quart_openai_sse.transport.exchange import Exchange, Feed
from quart_openai_sse.transport.pool import Pool

_TOKENS = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_BAD_IN_VALUE = re.compile(rb"[\0\r\n]")  # RFC 9110, 5.5
_BAD_IN_TARGET = re.compile(rb"[\0-\x20\x7f]")
_PORTS = {"http": 80, "https": 443}


__all__ = ["Exchange", "Feed", "Origin", "PushTransport", "create_transport", "find_origin"]


class PushedStream:
    """The body of a response, for httpx to iterate over."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self._exchange.read():
            yield data

    async def aclose(self) -> None:
        """Closes the connection, unless the body is complete."""
        self._exchange.close()


class PushTransport:
    """Sends requests over a pool of connections. One instance serves one event loop.

    A response's `extensions["push"]` is a coroutine function: `push(feed)` calls *feed* with the bytes of the body,
    once for each read from the socket. It returns `Flow.MORE` at the body's end, and any other `Flow` as soon as *feed*
    does; bytes that arrived and were not fed are kept for the next `push` or iteration. Cancelling it closes the
    connection.

    With `extensions={"resend": True}` a request is sent a second time if its kept connection turns out to be closed.
    """

    module: Any
    """httpx or httpx2."""
    stream: Any
    """The subclass of `PushedStream` for `module`."""

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | bool = True,
        trust_env: bool = True,
        max_connections: int | None = 100,
        max_keepalive_connections: int | None = 20,
        keepalive_expiry: float | None = 5,
    ) -> None:
        self._verify, self._trust_env = verify, trust_env
        self._ssl: ssl.SSLContext | None = None
        self._pool = Pool(
            errors=self.module,
            connections=max_connections,
            idle=max_keepalive_connections,
            expiry=keepalive_expiry,
        )

    async def handle_async_request(self, request: Any) -> Any:
        """Sends *request* and returns the response as soon as its head has arrived. Raises httpx's errors."""
        exchange = await self.exchange(
            request.method,
            find_origin(request.url, self.module),
            request.url.raw_path,
            request.headers.raw,
            request.stream,
            timeouts=request.extensions.get("timeout", {}),
            resend=request.extensions.get("resend", False),
        )
        return self.module.Response(
            exchange.status,
            headers=exchange.headers,
            stream=self.stream(exchange),
            extensions={"http_version": exchange.version, "reason_phrase": exchange.reason, "push": exchange.push},
        )

    async def exchange(
        self,
        method: str,
        origin: Origin,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        content: bytes | AsyncIterable[bytes],
        *,
        timeouts: Mapping[str, float | None],
        resend: bool = False,
    ) -> Exchange:
        """Like `handle_async_request`, without httpx's objects. The caller must close the `Exchange`.

        *timeouts* are in seconds, by httpx's names: `pool`, `connect`, `read`, `write`; `None` is no timeout.
        """
        head = _head(method, target, headers, self.module)
        chunked = any(name.lower() == b"transfer-encoding" for name, _ in headers)
        message = _RequestMessage(head, content, chunked)
        exchange = await self._send(method, origin, message, timeouts)
        if exchange.stale and resend:
            exchange = await self._send(method, origin, message, timeouts)
        exchange.check()
        return exchange

    async def _send(
        self, method: str, origin: Origin, message: _RequestMessage, timeouts: Mapping[str, float | None]
    ) -> Exchange:
        connection = await self._pool.acquire(origin, timeouts.get("pool"))
        exchange = connection.begin(method, timeouts)
        try:
            if not connection.connected:
                await connection.connect(self._context(origin.scheme), timeouts.get("connect"))
            await message.send(exchange)
            await exchange.answer()
        except BaseException:
            exchange.close()
            raise
        return exchange

    def _context(self, scheme: str) -> ssl.SSLContext | None:
        if scheme == "http":
            return None
        if self._ssl is None:
            self._ssl = self.module.create_ssl_context(verify=self._verify, trust_env=self._trust_env)
            self._ssl.set_alpn_protocols(["http/1.1"])
        return self._ssl

    async def aclose(self) -> None:
        """Closes all connections, including those in use."""
        self._pool.close()
        await asyncio.sleep(0)  # the event loop closes the sockets in its next iteration


@cache
def create_transport(module: Any) -> type[PushTransport]:
    """The subclass of `PushTransport` for *module*, httpx or httpx2: it uses their base classes and errors.

    It supports HTTP/1.1 without proxies and Unix sockets.
    """
    stream = type("PushedStream", (PushedStream, module.AsyncByteStream), {})
    return type("PushTransport", (PushTransport, module.AsyncBaseTransport), {"module": module, "stream": stream})


def find_origin(url: Any, errors: Any) -> Origin:
    """The scheme, host and port of *url*. Raises `UnsupportedProtocol` for any other scheme than http and https."""
    if url.scheme not in _PORTS:
        raise errors.UnsupportedProtocol(f"Request URL has an unsupported protocol {url.scheme + '://'!r}.")
    return Origin(url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme])


def _head(method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], errors: Any) -> bytes:
    """The request line and the headers (RFC 9112, 3 and 5). Raises `LocalProtocolError` if one of them is invalid."""
    names = [name for name, _ in headers]
    # Without these checks, a value with line breaks could smuggle in a second request.
    if not all(names) or not _TOKENS.fullmatch(method.encode() + b"".join(names)):
        raise errors.LocalProtocolError("The request has an invalid method or header name.")
    if _BAD_IN_TARGET.search(target) or _BAD_IN_VALUE.search(b" ".join([value for _, value in headers])):
        raise errors.LocalProtocolError("The request has an invalid target or header value.")
    lines = [b"%b %b HTTP/1.1" % (method.encode(), target), *[b"%b: %b" % header for header in headers], b"", b""]
    return b"\r\n".join(lines)


class _RequestMessage(NamedTuple):
    """A request as it is sent: its head and its content."""

    head: bytes
    content: bytes | AsyncIterable[bytes]
    chunked: bool

    async def send(self, exchange: Exchange) -> None:
        """Sends the request. Stops early if the server has already responded."""
        unsent, content, chunked = self
        if isinstance(content, bytes):
            await exchange.send(unsent + content)
            exchange.sent = True
            return
        async for data in content:
            if data:
                await exchange.send(unsent + (b"%x\r\n%b\r\n" % (len(data), data) if chunked else data))
                unsent = b""
            if exchange.answered:
                return
        if unsent or chunked:
            await exchange.send(unsent + (b"0\r\n\r\n" if chunked else b""))
        exchange.sent = True
