"""A connection to a server: the bytes of one exchange after another."""

from __future__ import annotations

import asyncio
import ssl
import threading
from ipaddress import ip_address
from typing import Any, NamedTuple, Protocol, cast

from quart_openai_sse.transport.addresses import open_socket
from quart_openai_sse.transport.exchange import Exchange

_READ = 64 << 10  # bytes at a time


class _Buffer(threading.local):
    """What all connections of a thread read into: it runs one event loop, which has each read consumed at once."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_READ))


_buffer = _Buffer()


class Origin(NamedTuple):
    """A server (RFC 9110, 4.3.1)."""

    scheme: str
    host: str
    port: int


class Owner(Protocol):
    """The pool, as a connection knows it."""

    errors: Any

    def release(self, connection: Connection) -> None:
        """Takes back a connection that can serve another request."""
        ...

    def discard(self, connection: Connection) -> None:
        """Forgets a connection that has ended. More than once does no harm."""
        ...


class Connection(asyncio.BufferedProtocol):
    """A connection to *origin*. It is the pool's until it ends: by `abort`, or because it is lost."""

    def __init__(self, pool: Owner, origin: Origin) -> None:
        self.origin = origin
        self.errors = pool.errors
        self.used = False
        self.writable = True
        self.closed = False
        """Whether it is of no use any more."""
        self._pool = pool
        self._exchange: Exchange | None = None
        self._transport: asyncio.Transport | None = None
        self._view = _buffer.view
        self._paused = False

    @property
    def connected(self) -> bool:
        """Whether it was ever connected."""
        return self._transport is not None

    async def connect(self, context: ssl.SSLContext | None, timeout: float | None) -> None:
        """Connects. Raises `ConnectError` and `ConnectTimeout`."""
        loop, (_, host, port) = asyncio.get_running_loop(), self.origin
        try:
            async with asyncio.timeout(timeout):
                if _is_address(host):
                    await loop.create_connection(lambda: self, host, port, ssl=context)
                else:
                    opened, name = await open_socket(host, port), None if context is None else host
                    await loop.create_connection(lambda: self, sock=opened, ssl=context, server_hostname=name)
        except TimeoutError:
            raise self.errors.ConnectTimeout("No connection in time.") from None
        except (OSError, UnicodeError) as error:  # among them ssl.SSLError; and a host that is no name
            raise self.errors.ConnectError(str(error)) from error

    def begin(self, method: str, timeouts: Any) -> Exchange:
        """The next exchange, whose bytes are its own affair from now on."""
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
        """Ends it, now: nothing is waited for."""
        self.closed = True
        self._pool.discard(self)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Ends it, and its exchange."""
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
            self.abort()  # nobody has asked for anything: RFC 9112, 9.2

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
