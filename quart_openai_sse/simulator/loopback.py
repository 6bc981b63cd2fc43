"""Serves an ASGI app on a socket of the running event loop, within an `async with` block."""

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
    app: Any, *, host: str = "127.0.0.1", port: int = 0, on_exit: Callable[[], object] = lambda: None
) -> AsyncIterator[str]:
    """Serves *app* with hypercorn and yields its address, such as `127.0.0.1:54321`; *port* 0 is a free port.

    At the end of the block, *on_exit* is called and every open connection is closed, so running streams are cut.
    Raises `OSError` if the address is not available.
    """
    with Listener(host, port) as listener:
        stopping = asyncio.Event()
        server = serve(
            _DisconnectingApp(stopping, app), ServerConfig(listener), shutdown_trigger=stopping.wait, mode="asgi"
        )
        serving = asyncio.ensure_future(server)
        try:
            yield listener.address
        finally:
            on_exit()
            stopping.set()
            await _end(serving, listener)


class Listener(socket.socket):
    """A listening socket that can close the connections it has accepted. Its address is `address`."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.accepted: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        try:
            if os.name == "posix":  # on Windows this option would let two servers share a port
                self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.bind((host, port))
            self.listen(100)  # from now on clients can connect, even before the server runs
        except BaseException:
            self.close()
            raise
        name = f"[{host}]" if ":" in host else host
        self.address = f"{name}:{self.getsockname()[1]}"

    def accept(self) -> tuple[socket.socket, Any]:
        """See `socket.socket.accept`."""
        connection, address = super().accept()
        self.accepted.add(connection)
        return connection, address

    def has_connections(self) -> bool:
        """Whether any accepted connection is open."""
        return any(connection.fileno() >= 0 for connection in self.accepted)

    def hang_up(self) -> None:
        """Closes all accepted connections, even if sent data has not been read."""
        for connection in list(self.accepted):
            with contextlib.suppress(OSError):  # already closed
                connection.shutdown(socket.SHUT_RDWR)


class ServerConfig(HypercornConfig):
    """Hypercorn's configuration for a `Listener`; hypercorn's log lines go to our logger."""

    errorlog = logger

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self.listener = listener

    def create_sockets(self) -> Sockets:
        """The listener, in place of sockets that hypercorn would bind."""
        return Sockets([], [self.listener], [])


class _DisconnectingApp:
    """The app, which sees every client disconnect when *stopping* is set."""

    def __init__(self, stopping: asyncio.Event, app: Any) -> None:
        self.stopping = stopping
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def receive_or_disconnect() -> Any:
            message, stop = asyncio.ensure_future(receive()), asyncio.ensure_future(self.stopping.wait())
            try:
                await asyncio.wait({message, stop}, return_when=asyncio.FIRST_COMPLETED)
                return message.result() if message.done() else {"type": "http.disconnect"}
            finally:
                message.cancel()
                stop.cancel()

        await self.app(scope, receive if scope["type"] == "lifespan" else receive_or_disconnect, send)


async def _end(serving: asyncio.Future[None], listener: Listener) -> None:
    """Ends hypercorn, which waits for open connections, on Python 3.12 and later without a limit: they are closed here.

    A client may connect again until the listener is closed. Such a connection can be accepted when hypercorn has ended
    already, so the last ones are waited for. With uvloop, which accepts connections itself, the listener has none to
    close; after two seconds hypercorn is cancelled.
    """
    for _ in range(100):
        listener.hang_up()
        if serving.done() and not listener.has_connections():
            return serving.result()
        await (asyncio.sleep(0.02) if serving.done() else asyncio.wait({serving}, timeout=0.02))
    serving.cancel()
    await asyncio.wait({serving})
    return None if serving.cancelled() else serving.result()
