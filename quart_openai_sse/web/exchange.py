"""One request within the process: the app is called, and the client reads its response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import Context, ContextVar
from functools import cache
from typing import Any, NoReturn

from quart import Quart

from quart_openai_sse.web.middleware import Message, Scope

depth_of_request: ContextVar[int] = ContextVar("quart_openai_sse_depth", default=0)
"""How many requests within the process the current one is nested in, itself included."""

_running: set[Exchange] = set()
"""The exchanges whose app is running. An event loop holds no strong reference to its tasks."""


class Exchange:
    """One request and its response. It holds at most one piece of the body; the app waits until that is taken."""

    task: asyncio.Task[None]

    def __init__(self, library: Any, body: bytes, timeout: float | None) -> None:
        self._library = library
        self._timeout = timeout
        self._request: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._head: Message | None = None
        self._piece = b""
        self._complete = False
        self._closed = False
        self._changed = asyncio.Event()  # for the client: a head, a piece, or the end
        self._room = asyncio.Event()  # for the app: the client has taken the piece
        self._room.set()
        self._over = asyncio.Event()  # for the app: the response is complete, or the client has left

    def begin(self, app: Quart, scope: Scope, depth: int) -> None:
        """Calls *app*, in a context as empty as a server's."""
        context = Context()  # in a copy of this one, Quart 0.22 would use the caller's app context, and its `g`
        context.run(depth_of_request.set, depth)
        self.task = asyncio.get_running_loop().create_task(self._run(app, scope), context=context)
        _running.add(self)
        self.task.add_done_callback(self._end)

    async def _run(self, app: Quart, scope: Scope) -> None:
        await app(scope, self._receive, self._send)  # type: ignore[arg-type]

    def _end(self, task: asyncio.Task[None]) -> None:
        _running.discard(self)
        self._changed.set()
        if not task.cancelled():
            task.exception()  # retrieved: if the client has left, no other code does

    # The client's side ----------------------------------------------------------------------------------------------

    async def head(self) -> Message:
        """The status and headers. Raises the library's `RemoteProtocolError` and `ReadTimeout`."""
        while self._head is None:
            await self._wait("The app ended without a response.")
        return self._head

    async def read(self) -> bytes:
        """The next piece of the body, or b"" at its end. Raises the library's `RemoteProtocolError`, `ReadTimeout`."""
        while not self._piece:
            if self._complete:
                return b""
            await self._wait("The app ended before its response was complete.")
        piece, self._piece = self._piece, b""
        self._room.set()
        return piece

    def close(self) -> None:
        """Disconnects, unless the response is complete."""
        if not self._complete:
            self._closed = True
            self._over.set()
            self._room.set()

    def abandon(self) -> None:
        """As `close`, from any thread. Nothing else ends the response of a client that never closes it."""
        if not (self._complete or self._closed):
            with suppress(RuntimeError):  # the event loop is closed
                self.task.get_loop().call_soon_threadsafe(self.close)

    async def _wait(self, end: str) -> None:
        """Waits until something has changed. Disconnects if the client is cancelled, or has waited for too long."""
        if self.task.done():
            self._fail(end)
        self._changed.clear()
        try:
            async with asyncio.timeout(self._timeout):
                await self._changed.wait()
        except TimeoutError:
            self.close()
            raise self._library.ReadTimeout("The app did not respond in time.") from None
        except BaseException:
            self.close()
            raise

    def _fail(self, message: str) -> NoReturn:
        raise self._library.RemoteProtocolError(message) from None if self.task.cancelled() else self.task.exception()

    # The app's side -------------------------------------------------------------------------------------------------

    async def _receive(self) -> Message:
        if (message := self._request) is not None:
            self._request = None
            return message
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            self._changed.set()
        elif message["type"] == "http.response.body":
            if body := message.get("body"):
                await self._room.wait()
                if self._closed:
                    raise OSError("The client has disconnected.")  # as ASGI wants it
                self._room.clear()
                self._piece = bytes(body)
            if not message.get("more_body"):
                self._complete = True
                self._over.set()
            self._changed.set()


class _Body:
    """The body of a response, for the library to iterate over. A client that drops it has disconnected."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self._exchange.read():
            yield data

    async def aclose(self) -> None:
        self._exchange.close()

    def __del__(self) -> None:
        self._exchange.abandon()


@cache
def stream_class(library: Any) -> type[_Body]:
    return type("InProcessStream", (_Body, library.AsyncByteStream), {})
