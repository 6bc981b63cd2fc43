"""An ASGI app on a socket of the running event loop, gone without a trace when its block is left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets

logger = logging.getLogger("quart_openai_sse.loopback")


@contextlib.asynccontextmanager
async def serve_app(
    app: Any, *, host: str = "127.0.0.1", port: int = 0, leaving: Callable[[], object] = lambda: None
) -> AsyncIterator[str]:
    """Serves *app* by hypercorn and gives its address, `127.0.0.1:54321`; on a free *port*, unless you name one.

    Leaving the block calls *leaving* and hangs up on every open connection, so that a stream in flight is cut and
    nothing goes on. Raises `OSError` if the address can't be had.
    """
    with Listener(host, port) as listener:
        stopping = asyncio.Event()
        server = serve(_Until(stopping, app), ServerConfig(listener), shutdown_trigger=stopping.wait, mode="asgi")
        serving = asyncio.ensure_future(server)
        try:
            yield listener.address
        finally:
            leaving()
            stopping.set()
            await _end(serving, listener)


class Listener(socket.socket):
    """A bound socket that knows the connections it has accepted, and can hang up on them."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.accepted: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        try:
            if os.name == "posix":  # elsewhere it lets two servers share a port
                self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.bind((host, port))
            self.listen(100)  # from here on nobody is refused, even before the server runs
        except BaseException:
            self.close()
            raise
        name = f"[{host}]" if ":" in host else host
        self.address = f"{name}:{self.getsockname()[1]}"

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        self.accepted.add(connection)
        return connection, address

    def hang_up(self) -> None:
        """Closes them, whoever has not read what was sent."""
        for connection in list(self.accepted):
            with contextlib.suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)


class ServerConfig(HypercornConfig):
    """Hypercorn on that socket; its own lines go to our logger."""

    errorlog = logger

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self.listener = listener

    def create_sockets(self) -> Sockets:
        return Sockets([], [self.listener], [])


class _Until:
    """The app, for which every peer is gone once *stopping* is set."""

    def __init__(self, stopping: asyncio.Event, app: Any) -> None:
        self.stopping = stopping
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def receive_until() -> Any:
            message, stop = asyncio.ensure_future(receive()), asyncio.ensure_future(self.stopping.wait())
            try:
                await asyncio.wait({message, stop}, return_when=asyncio.FIRST_COMPLETED)
                return message.result() if message.done() else {"type": "http.disconnect"}
            finally:
                message.cancel()
                stop.cancel()

        await self.app(scope, receive if scope["type"] == "lifespan" else receive_until, send)


async def _end(serving: asyncio.Future[None], listener: Listener) -> None:
    """Hypercorn waits for open connections, on Python 3.12 and later for ever: close them for it.

    A loop that accepts by itself, as uvloop does, leaves us none to close. There only a client that reads nothing
    is waited for, and not long.
    """
    for _ in range(100):
        listener.hang_up()
        done, _pending = await asyncio.wait({serving}, timeout=0.02)
        if done:
            return serving.result()
    serving.cancel()
    await asyncio.wait({serving})
    return None
