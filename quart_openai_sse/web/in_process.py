"""A transport with which the client of a library asks this app's own routes, without a socket and as a principal."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Collection
from contextvars import Context, ContextVar
from dataclasses import replace
from functools import cache
from types import TracebackType
from typing import Any, NoReturn, Self

from quart import Quart

from quart_openai_sse.auth.in_process import CALLER, Caller
from quart_openai_sse.errors import NestedTooDeep, OpenAISSEError, RouteNotFound, english
from quart_openai_sse.formats import json_refusal
from quart_openai_sse.principal import Principal
from quart_openai_sse.protocol.trace_context import current_trace_id
from quart_openai_sse.web.middleware import Message, Scope, below

_LIBRARIES = ("httpx", "httpx2")
_CREDENTIALS = frozenset({b"authorization", b"proxy-authorization", b"cookie", b"api-key", b"x-api-key"})
_DEEPEST = 5  # requests within each other

_depth: ContextVar[int] = ContextVar("quart_openai_sse_depth", default=0)
_exchanges: set[_Exchange] = set()
"""The exchanges whose app is running. An event loop holds no strong reference to its tasks."""


class InProcessTransport:
    """Passes the requests of a client of httpx or httpx2 to *app*, as *principal*.

    It belongs to no event loop, and may be used by several clients.
    """

    def __init__(self, app: Quart, *, principal: Principal, instance: str, prefixes: Collection[str]) -> None:
        # The request is not from a page, so its origin is not checked.
        self._caller = Caller(replace(principal, cookie=False), instance, app)
        self._prefixes = prefixes
        self._opened: set[_Exchange] = set()

    async def handle_async_request(self, request: Any) -> Any:
        """Sends *request*, and returns the response as soon as the app begins it. Raises the library's errors."""
        library = _library_of(request)
        scope = _scope(request)
        if not below(scope, self._prefixes):
            return _refuse(library, RouteNotFound(_elsewhere(scope["path"], self._prefixes)))
        if (depth := _depth.get() + 1) > _DEEPEST:
            return _refuse(library, NestedTooDeep(f"More than {_DEEPEST} requests through ai.transport() are nested."))
        scope[CALLER] = self._caller
        exchange = _Exchange(library, await request.aread(), request.extensions.get("timeout", {}).get("read"))
        exchange.begin(self._caller.app, scope, depth)
        self._opened.add(exchange)
        exchange.task.add_done_callback(lambda _: self._opened.discard(exchange))
        head = await exchange.head()
        stream = _stream_class(library)(exchange)
        return library.Response(head["status"], headers=list(head.get("headers", ())), stream=stream)

    async def aclose(self) -> None:
        """Ends the responses that are not complete."""
        for exchange in list(self._opened):
            exchange.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class _Exchange:
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
        context.run(_depth.set, depth)
        self.task = asyncio.get_running_loop().create_task(self._run(app, scope), context=context)
        _exchanges.add(self)
        self.task.add_done_callback(self._end)

    async def _run(self, app: Quart, scope: Scope) -> None:
        await app(scope, self._receive, self._send)  # type: ignore[arg-type]

    def _end(self, task: asyncio.Task[None]) -> None:
        _exchanges.discard(self)
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
    """The body of a response, for the library to iterate over."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self._exchange.read():
            yield data

    async def aclose(self) -> None:
        self._exchange.close()


@cache
def _stream_class(library: Any) -> type[_Body]:
    return type("InProcessStream", (_Body, library.AsyncByteStream), {})


def _library_of(request: Any) -> Any:
    """The module httpx or httpx2, whichever *request* is of: their responses and errors differ."""
    for name in _LIBRARIES:
        if (library := sys.modules.get(name)) is not None and isinstance(request, library.Request):
            return library
    raise TypeError(f"ai.transport() is for an AsyncClient of httpx or httpx2, not for a {type(request).__name__}.")


def _scope(request: Any) -> Scope:
    """The ASGI scope of *request*, without the credentials that the library sends: they mean nothing here."""
    url = request.url
    headers = [(name.lower(), value) for name, value in request.headers.raw if name.lower() not in _CREDENTIALS]
    if (trace_id := current_trace_id()) and not {b"traceparent", b"x-trace-id"}.intersection(dict(headers)):
        headers.append((b"x-trace-id", trace_id.encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": url.scheme,
        "path": url.path,
        "raw_path": url.raw_path.partition(b"?")[0],
        "query_string": url.query,
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": (url.host, url.port),
        "extensions": {},
    }


def _elsewhere(path: str, prefixes: Collection[str]) -> str:
    ours = " or ".join(sorted(prefix or "/" for prefix in prefixes))
    return f"ai.transport() reaches only the extension's own routes, below {ours}, and not {path}."


def _refuse(library: Any, error: OpenAISSEError) -> Any:
    body, content_type = json_refusal(error, english)
    return library.Response(error.status, headers={"Content-Type": content_type, **error.headers()}, content=body)
