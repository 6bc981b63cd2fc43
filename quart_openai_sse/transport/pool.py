"""The connections of one transport: those in use, those that are kept idle, and the requests that wait for one."""

from __future__ import annotations

import asyncio
import math
from contextvars import Context
from typing import Any

from quart_openai_sse.transport.connection import Connection, Origin


class Pool:
    """Holds at most *connections*, of which at most *idle* stay open unused, for *expiry* seconds. `None`: no limit."""

    def __init__(self, *, errors: Any, connections: int | None, idle: int | None, expiry: float | None) -> None:
        self.errors = errors
        self._max = math.inf if connections is None else connections
        self._max_idle = math.inf if idle is None else idle
        self._expiry = math.inf if expiry is None else expiry
        self._all: set[Connection] = set()
        self._idle: dict[Origin, dict[Connection, float]] = {}
        """By origin: the time since when each connection is idle; the one used last comes last."""
        self._idle_count = 0
        self._waiters: dict[asyncio.Future[Connection], Origin] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, origin: Origin, timeout: float | None) -> Connection:
        """A connection to *origin*: an idle one, or a new one that is not connected yet.

        If all are in use, waits for *timeout* seconds. `release` or the connection's end gives it back. Raises
        `PoolTimeout`.
        """
        if kept := self._idle.get(origin):
            connection, _ = kept.popitem()
            self._forget(origin)
            return connection
        if len(self._all) >= self._max and self._idle:
            next(iter(next(iter(self._idle.values())))).abort()  # to make room: all idle ones have other origins
        if len(self._all) < self._max:
            return self._create(origin)
        return await self._wait(origin, timeout)

    def release(self, connection: Connection) -> None:
        """Takes back a connection that can serve another request."""
        while self._waiters:
            waiter, origin = next(iter(self._waiters.items()))
            if waiter.done():
                del self._waiters[waiter]
            elif origin == connection.origin:
                del self._waiters[waiter]
                waiter.set_result(connection)
                return
            else:
                connection.abort()  # its place goes to the waiter
                return
        if self._idle_count >= self._max_idle:
            connection.abort()
            return
        self._keep(connection)

    def discard(self, connection: Connection) -> None:
        """Forgets a connection that has ended and gives its place to the next waiter. Repeated calls have no effect."""
        if connection not in self._all:
            return
        self._all.remove(connection)
        if self._idle.get(connection.origin, {}).pop(connection, None) is not None:
            self._forget(connection.origin)
        while self._waiters and len(self._all) < self._max:
            waiter = next(iter(self._waiters))
            origin = self._waiters.pop(waiter)
            if not waiter.done():
                waiter.set_result(self._create(origin))

    def close(self) -> None:
        """Closes all connections. Requests that wait for one get a `ConnectError`."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(self.errors.ConnectError("The transport was closed."))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in list(self._all):
            connection.close()

    def _create(self, origin: Origin) -> Connection:
        connection = Connection(self, origin)
        self._all.add(connection)
        return connection

    async def _wait(self, origin: Origin, timeout: float | None) -> Connection:
        waiter: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = origin
        try:
            async with asyncio.timeout(timeout):
                connection = await waiter
        except BaseException as error:
            self._waiters.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_back(waiter.result())  # it arrived at the moment of the cancellation
            if isinstance(error, TimeoutError):
                raise self.errors.PoolTimeout("All connections are in use.") from None
            raise
        # The connection may have been closed between `set_result` and this line.
        return await self.acquire(origin, timeout) if connection.closed else connection

    def _give_back(self, connection: Connection) -> None:
        if connection.connected and not connection.closed:
            self.release(connection)
        else:
            self.discard(connection)

    def _keep(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._idle.setdefault(connection.origin, {})[connection] = now
        self._idle_count += 1
        if self._timer is None and self._expiry < math.inf:
            self._timer = loop.call_at(now + self._expiry, self._expire, context=Context())

    def _forget(self, origin: Origin) -> None:
        self._idle_count -= 1
        if not self._idle[origin]:
            del self._idle[origin]

    def _expire(self) -> None:
        """Closes the connections that have been idle for too long; one timer serves all of them."""
        loop = asyncio.get_running_loop()
        limit = loop.time() - self._expiry
        for kept in list(self._idle.values()):
            for connection in [each for each, since in kept.items() if since <= limit]:
                connection.abort()
        oldest = min((since for kept in self._idle.values() for since in kept.values()), default=None)
        self._timer = None if oldest is None else loop.call_at(oldest + self._expiry, self._expire, context=Context())
