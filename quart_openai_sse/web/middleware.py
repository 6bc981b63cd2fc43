"""ASGI middleware around the whole app: trace ids, log lines of responses, clients that left, and limits of bodies."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from contextlib import suppress
from functools import cache
from typing import Any, cast
from urllib.parse import quote, urlparse

from quart_openai_sse.protocol.trace_context import TraceIdFilter, reset_trace_id, set_trace_id, trace_id_from

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

OWN_LIMIT = "quart_openai_sse.own_limit"
"""The key in the scope of a request whose body is not limited by Quart. The value is `Received`."""

_CLOSED = {"ClosedResourceError", "BrokenResourceError"}  # anyio's
_MOMENT = 0.1  # seconds in which a server says that the client has left

logger = logging.getLogger("quart_openai_sse.response")


class StreamLoggingMiddleware:
    """Gives each request a trace id. Logs each stream's response, and each one below *prefixes*, when it ends."""

    def __init__(self, app: ASGIApp, *, prefixes: Collection[str]) -> None:
        self._app = app
        self._prefixes = prefixes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace_id = _trace_id(scope)
        token = set_trace_id(trace_id)
        response = _LoggedResponse(send, trace_id)
        try:
            await self._app(scope, receive, response.send)
        except Exception as error:
            if not await _has_left(error, response.failure, receive):
                raise
        finally:
            if response.streams or below(scope, self._prefixes):
                response.log(scope)
            reset_trace_id(token)


def _trace_id(scope: Scope) -> str:
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    return trace_id_from(headers.get(b"traceparent", ""), headers.get(b"x-trace-id", ""))


class _LoggedResponse:
    """A response on its way to the server."""

    def __init__(self, send: Send, trace_id: str) -> None:
        self._send = send
        self._trace_id = trace_id
        self._began = time.monotonic()
        self._status = 0
        self._bytes = 0
        self._first_byte: float | None = None
        self._complete = False
        self.streams = False
        self.failure: Exception | None = None
        """What the server's `send` has raised."""

    async def send(self, message: Message) -> None:
        """Notes what the log line needs of *message*, and passes it on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self.streams = any(_is_of_stream(name.lower(), value) for name, value in message["headers"])
            message = {**message, "headers": [*message["headers"], (b"x-trace-id", self._trace_id.encode())]}
        elif body := message.get("body"):
            self._bytes += len(body)
            if self._first_byte is None:
                self._first_byte = time.monotonic() - self._began
        try:
            await self._send(message)
        except Exception as error:
            self.failure = error
            raise
        if message["type"] == "http.response.body":
            self._complete = not message.get("more_body")

    def log(self, scope: Scope) -> None:
        fields = {
            "method": scope["method"],
            "path": quote(scope["path"]),  # on one line, and without the query, which may hold secrets
            "status": self._status,
            "bytes": self._bytes,
            "time_to_first_byte": self._first_byte,
            "duration": time.monotonic() - self._began,
            "client_left": not self._complete,
            "trace_id": self._trace_id,
        }
        logger.info(
            "%s %s %d %d bytes first=%s duration=%.3fs%s",
            fields["method"],
            fields["path"],
            self._status,
            self._bytes,
            "-" if self._first_byte is None else f"{self._first_byte:.3f}s",
            fields["duration"],
            "" if self._complete else " client left",
            extra={f"response_{name}": value for name, value in fields.items()},
        )


def _is_of_stream(name: bytes, value: bytes) -> bool:
    """Whether a response with this header streams: server-sent events, or one of our streams in any format."""
    return name == b"x-stream-id" or (name == b"content-type" and value.startswith(b"text/event-stream"))


class Received:
    """What has arrived of a request's body."""

    size = 0
    """Bytes, with those that were discarded."""


class LeftClients:
    """Ends the app's call without an error if `send` raises because the client has left, for apps that log no line.

    Servers log a traceback of what an app raises, and `StreamLoggingMiddleware` does the same as this.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        failure: Exception | None = None

        async def watched_send(message: Message) -> None:
            nonlocal failure
            try:
                await send(message)
            except Exception as error:
                failure = error
                raise

        try:
            await self._app(scope, receive, watched_send if scope["type"] == "http" else send)
        except Exception as error:
            if not await _has_left(error, failure, receive):
                raise


async def _has_left(error: Exception, failure: Exception | None, receive: Receive) -> bool:
    """Whether *error*, which the app has raised, only says that the client has left. *failure* is what `send` raised.

    Some failures say so; for any other the server is asked. uvicorn with httptools does not say it of a client that has
    sent a further request on the connection; with uvloop, its `send` then raises that "the handler is closed".
    """
    # Quart 0.23 raises its own error in place of an OSError of `send`, and if it has heard that the client has left.
    if any(each is not failure and type(each).__name__ != "ClientDisconnectedError" for each in _parts(error)):
        return False
    if failure is None:
        return True
    if isinstance(failure, ConnectionError) or type(failure).__name__ in _CLOSED:
        return True
    if isinstance(failure, RuntimeError) and str(failure).endswith("the handler is closed"):
        return True
    with suppress(Exception):
        async with asyncio.timeout(_MOMENT):
            while (await receive())["type"] != "http.disconnect":
                pass
            return True
    return False


def _parts(error: Exception) -> Iterator[Exception]:
    """The exceptions of a group (Quart 0.23 raises one), or *error* itself."""
    if isinstance(error, ExceptionGroup):
        for each in cast("ExceptionGroup[Exception]", error).exceptions:
            yield from _parts(each)
    else:
        yield error


class BodyLimit:
    """Discards the part of a request's body beyond *limit* bytes, because Quart is told to buffer it without limit.

    The view counts the bytes itself and responds with 413. It applies to POST requests for *paths* below *prefixes*.
    """

    def __init__(self, app: ASGIApp, *, prefixes: Collection[str], paths: Collection[str], limit: int) -> None:
        self._app = app
        self._prefixes = prefixes
        self._paths = paths
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        paths = {prefix + own for prefix in self._prefixes for own in self._paths}
        limited = scope.get("method") == "POST" and (scope["path"] in paths or _is_one_of(paths, routed_path(scope)))
        if not limited:  # only an HTTP request has a method
            await self._app(scope, receive, send)
            return
        received = Received()
        scope = {**scope, OWN_LIMIT: received}

        async def bounded_receive() -> Message:
            message = await receive()
            size = len(message.get("body", b""))
            if received.size > self._limit and size:
                message = {**message, "body": b""}
            received.size += size
            return message

        await self._app(scope, bounded_receive, send)


def add_trace_ids(app_logger: logging.Logger) -> None:
    """Adds `TraceIdFilter` to *app_logger*, to our loggers and to the handlers of the root logger."""
    ours = [logging.getLogger(f"quart_openai_sse{name}") for name in ("", ".stream", ".response")]
    places: list[logging.Filterer] = [app_logger, *ours, *logging.getLogger().handlers]
    for place in places:
        if not any(isinstance(each, TraceIdFilter) for each in place.filters):
            place.addFilter(TraceIdFilter())


def below(scope: Scope, prefixes: Collection[str]) -> bool:
    """Whether the path of the request, as Quart reads it, is one of *prefixes* or below it."""
    path = routed_path(scope)
    return any(
        path == prefix or path.startswith(prefix + "/") or ("<" in prefix and _pattern(prefix + "/").match(path + "/"))
        for prefix in prefixes
    )


def _is_one_of(paths: Collection[str], path: str) -> bool:
    return path in paths or any("<" in each and _pattern(each).fullmatch(path) for each in paths)


@cache
def _pattern(path: str) -> re.Pattern[str]:
    """Matches what Quart's router does for *path*, whose variables are like the one in `/t/<tenant>/v1`."""
    parts = re.split("(<[^<>]*>)", path)
    return re.compile("".join(_variable(each) if each.startswith("<") else re.escape(each) for each in parts))


def _variable(name: str) -> str:
    return "[^/].*?" if name.startswith("<path:") else "[^/]+"


def routed_path(scope: Scope) -> str:
    """The path that Quart matches with its routes: without the server's `root_path`, and with one leading slash.

    Quart removes further leading slashes, so `//v1/streams` reaches the route `/v1/streams`. A path that does not begin
    with `root_path` matches no route.
    """
    return "/" + path_of(scope).removeprefix(scope.get("root_path", "")).lstrip("/")


def path_of(scope: Scope) -> str:
    """The path in *scope*; `""` if it is invalid.

    The target of a request can be a whole URL (RFC 9112, 3.2.2). Some servers pass it on as the path, and Quart parses
    it with this function of Python's.
    """
    path: str = scope["path"]
    try:
        return path if path.startswith("/") else urlparse(path).path
    except ValueError:
        return ""
