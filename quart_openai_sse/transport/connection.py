"""A connection to a server, which serves one exchange after another."""

from __future__ import annotations

import asyncio
import ssl
import threading
from ipaddress import ip_address
from typing import Any, NamedTuple, Protocol, cast

from quart_openai_sse.transport.addresses import open_socket
from quart_openai_sse.transport.exchange import Exchange

_MAX_READ = 64 << 10  # bytes


class _Buffer(threading.local):
    """The buffer that all connections of a thread read into: its one event loop uses up each read at once."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_MAX_READ))


_buffer = _Buffer()


class Origin(NamedTuple):
    """A server (RFC 9110, 4.3.1)."""

    scheme: str
    host: str
    port: int


class Owner(Protocol):
    """The pool, as a connection uses it."""

    errors: Any

    def release(self, connection: Connection) -> None:
        """Takes back a connection that can serve another request."""
        ...

    def discard(self, connection: Connection) -> None:
        """Forgets a connection that has ended. Repeated calls have no effect."""
        ...


class Connection(asyncio.BufferedProtocol):
    """A connection to *origin*. It belongs to *pool* until it ends: by `abort`, or because it is lost."""

    def __init__(self, pool: Owner, origin: Origin) -> None:
        self.origin = origin
        self.errors = pool.errors
        self.used = False
        self.writable = True
        self.closed = False
        """Whether the connection has ended and cannot serve another request."""
        self._pool = pool
        self._exchange: Exchange | None = None
        self._transport: asyncio.Transport | None = None
        self._view = _buffer.view
        self._paused = False

    @property
    def connected(self) -> bool:
        """Whether the connection was ever established."""
        return self._transport is not None

    async def connect(self, context: ssl.SSLContext | None, timeout: float | None) -> None:
        """Connects within *timeout* seconds, with TLS if there is a *context*. Raises httpx's connect errors."""
        loop, (_, host, port) = asyncio.get_running_loop(), self.origin
        try:
            async with asyncio.timeout(timeout):
                if _is_address(host):
                    await loop.create_connection(lambda: self, host, port, ssl=context)
                else:
                    opened, name = await open_socket(host, port), None if context is None else host
                    await loop.create_connection(lambda: self, sock=opened, ssl=context, server_hostname=name)
        except TimeoutError:
            raise self.errors.ConnectTimeout("The connection was not established in time.") from None
        except (OSError, UnicodeError) as error:  # ssl.SSLError is an OSError; an invalid host name a UnicodeError
            raise self.errors.ConnectError(str(error)) from error

    def begin(self, method: str, timeouts: Any) -> Exchange:
        """A new exchange, which from now on gets all bytes that the connection receives."""
        read, write = timeouts.get("read"), timeouts.get("write")
        self._exchange = Exchange(self, method=method, read_timeout=read, write_timeout=write)
        return self._exchange

    def end(self, *, keep: bool) -> None:
        """See `Carrier`."""
        self._exchange = None
        self.used = True
        if keep and not self.closed:
            self.resume()
            self._pool.release(self)
        else:
            self.abort()

    def write(self, data: bytes) -> None:
        """See `Carrier`."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def pause(self) -> None:
        """See `Carrier`."""
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """See `Carrier`."""
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Closes the connection at once, without sending what is still buffered."""
        self.closed = True
        self._pool.discard(self)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Closes the connection and its exchange."""
        if self._exchange is not None:
            self._exchange.close()
        self.abort()

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)
        if self.closed:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        if self._exchange is not None:
            self._exchange.received(self._view[:nbytes])
        else:
            self.abort()  # data without a request: RFC 9112, 9.2

    def eof_received(self) -> None:
        """See `asyncio.Protocol`."""
        self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._lost(exc)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.writable = False

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.writable = True
        if self._exchange is not None:
            self._exchange.notify()

    def _lost(self, error: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        self.abort()
        if exchange is not None:
            exchange.lost(error)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
