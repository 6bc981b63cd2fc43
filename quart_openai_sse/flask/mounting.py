"""`mount` (extra `flask`): a Flask or other WSGI app and a Quart app as one ASGI app, in one process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from quart import Quart
from werkzeug.exceptions import ClientDisconnected

from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.flask.applications import check_wsgi_app, warn_of_hidden_routes, warn_of_websocket
from quart_openai_sse.web.middleware import ASGIApp, Message, Receive, Scope, Send, below, path_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["mount"]

T = TypeVar("T")

_DISCONNECTED = "quart_openai_sse.disconnected"
"""The member of the ASGI scope that holds `_Client.disconnected`."""

LINGERING_TIME = 30.0
"""Seconds for which the unread rest of an upload is received and discarded, like nginx's option of this name."""
LINGERING_TIMEOUT = 2.0
"""Seconds without data after which discarding ends: curl stops at an error status and waits for the response."""

_draining: set[asyncio.Future[None]] = set()
"""The uploads that are still discarded after their request has ended."""


def mount(
    flask_app: WSGIApplication, quart_app: Quart, *, prefix: str | Collection[str] = "/v1", threads: int = 16
) -> ASGIApp:
    """Returns an ASGI app that sends requests below *prefix* to *quart_app* and all others to *flask_app*.

    *prefix* is one path or several. Paths are not changed: the Quart app's own routes begin with the prefix. *threads*
    is how many requests the Flask app handles at the same time; streams use none of these threads. Headers whose names
    contain an underscore are not passed to the Flask app. The server's lifespan events go to the Quart app; websockets
    outside the prefixes are refused with 403, and a warning is logged for the first one. Another warning names the
    routes that the Flask app has below the prefixes by now: they are not reached.

    Raises `ConfigurationError` for an invalid *prefix* or *threads*, and if *flask_app* is not a WSGI app: Connexion's
    `FlaskApp` is an ASGI app since version 3.
    """
    check_wsgi_app(flask_app)
    prefixes = {each.rstrip("/") for each in ([prefix] if isinstance(prefix, str) else prefix)}
    if not prefixes or not all(each.startswith("/") for each in prefixes):
        raise ConfigurationError('mount(): prefix must be one or more paths that begin with "/", such as "/v1".')
    if threads < 1:
        raise ConfigurationError("mount(): threads must be at least 1.")
    warn_of_hidden_routes(flask_app, prefixes)
    from a2wsgi import WSGIMiddleware  # here, so that share_session works without the extra

    adapter = WSGIMiddleware(cast(Any, _AbortableApp(flask_app)), workers=threads)
    return _Mounted(cast(ASGIApp, adapter), cast(ASGIApp, quart_app), prefixes)


class _Mounted:
    """The ASGI app that `mount` returns."""

    def __init__(self, flask_app: ASGIApp, quart_app: ASGIApp, prefixes: Collection[str]) -> None:
        self._flask_app = flask_app
        self._quart_app = quart_app
        self._prefixes = prefixes
        self._has_warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] == "lifespan" or below(scope, self._prefixes):
            await self._quart_app(scope, receive, send)
        elif scope["type"] == "websocket":
            if not self._has_warned:
                self._has_warned = True
                warn_of_websocket(scope["path"])
            await receive()
            await send({"type": "websocket.close", "code": 1000})  # not accepted yet, so the server answers 403
        else:
            await _Request(scope, receive, send).run(self._flask_app)


class _Request:
    """One request to the WSGI app. Its thread ends when the client disconnects or the server aborts the request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        self._client = _Client()
        self._upload = _Upload(receive)
        self._response = _Response(scope["method"])
        self._failures: list[Exception] = []
        self._scope = {**_wsgi_scope(scope), _DISCONNECTED: self._client.disconnected}

    async def run(self, app: ASGIApp) -> None:
        """Returns when the app's thread has ended. Raises the app's exception, or the server's."""
        # The adapter receives only while the app reads the body, and servers do not tell a sender of a disconnect.
        listening = asyncio.ensure_future(self._upload.listen())
        listening.add_done_callback(self._client.disconnect)
        answering = asyncio.ensure_future(app(self._scope, self._receive, self._send_unless_disconnected))
        try:
            await asyncio.shield(answering)
            if self._failures:
                raise self._failures[0]
        except Exception:
            await self._client.unless_disconnected(self._upload.discard(), None)
            if not self._client.disconnected.done() and not self._upload.complete:
                # hypercorn cannot close a connection while it has data for the app, so the data is still discarded.
                _draining.add(listening)
                listening.add_done_callback(_draining.discard)
            raise
        finally:
            self._client.disconnect()
            ending: set[asyncio.Future[None]] = {answering}
            if listening not in _draining:
                listening.cancel()
                ending.add(listening)
            await asyncio.wait(ending)

    async def _receive(self) -> Message:
        # A message that has arrived is delivered even if the client has disconnected: a complete request is processed.
        message = self._upload.arrived() or await self._client.unless_disconnected(self._upload.read(), None)
        if message is None:
            raise ClientDisconnected  # the adapter would take a disconnect message for the end of the body
        return message

    async def _send_unless_disconnected(self, message: Message) -> None:
        try:
            for each in self._response.sendable(message, hold=not self._upload.complete):
                if self._response.finished:
                    await self._client.unless_disconnected(self._upload.discard(), None)
                if self._client.disconnected.done():  # or an interrupted response would be ended like a complete one
                    return
                await self._client.unless_disconnected(self._send(each), None)
        except Exception as error:
            # If it were raised here, the adapter's sender would end and the thread would wait for it forever.
            self._failures.append(error)
            self._client.disconnect()


class _Client:
    """The connection state of a request's client."""

    def __init__(self) -> None:
        self.disconnected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the client has disconnected, or the request has ended."""

    def disconnect(self, *_: Any) -> None:
        """Sets `disconnected`."""
        if not self.disconnected.done():
            self.disconnected.set_result(None)

    async def unless_disconnected(self, awaitable: Awaitable[T], otherwise: T) -> T:
        """The result of *awaitable*; if the client disconnects first, *awaitable* is cancelled: *otherwise*."""
        task = asyncio.ensure_future(awaitable)
        either: set[asyncio.Future[Any]] = {task, self.disconnected}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else otherwise
        finally:
            task.cancel()


class _Upload:
    """The body of a request. The app reads it; the part that is unread when the response ends is discarded.

    It holds at most one message and receives no other meanwhile, so that the client's sending is slowed down too.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._waiting: asyncio.Queue[Message] = asyncio.Queue(1)
        self._discarded = False
        self.complete = False

    async def listen(self) -> None:
        """Receives the body. Returns when the client has disconnected, or the server has ended the response."""
        while (message := await self._receive())["type"] != "http.disconnect":
            self.complete = not message.get("more_body")
            if not self._discarded:
                await self._waiting.put(message)

    async def read(self) -> Message:
        """The next message of the body."""
        return await self._waiting.get()

    def arrived(self) -> Message | None:
        """The next message of the body if it has arrived, else `None`."""
        return None if self._waiting.empty() else self._waiting.get_nowait()

    async def discard(self) -> None:
        """Discards the unread rest of the body; returns when the body is complete, or the time limits are reached.

        Call it before the response ends: at the end of a response, a server closes a connection whose request is
        incomplete, and many clients that are still sending then fail without reading the response.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGERING_TIME):
                while not self.complete and not self._discarded:
                    async with asyncio.timeout(LINGERING_TIMEOUT):
                        await self.read()
        # From now on listen() discards: hypercorn cannot close the connection while its queue for the app is full.
        self._discarded = True
        self.arrived()


class _Response:
    """Holds back the message that completes the response's body while the request's body is incomplete.

    granian ends a response after the last byte of its Content-Length, without waiting for the last ASGI message.
    """

    def __init__(self, method: str) -> None:
        self._head_only = method == "HEAD"
        self._remaining: int | None = None
        """Bytes of the body that are still to come; `None` if the length is unknown."""
        self._held: list[Message] = []
        self.finished = False
        """Whether the app has sent its last message."""

    def sendable(self, message: Message, *, hold: bool) -> list[Message]:
        """The messages to send now that the app has sent *message*. *hold*: the request's body is incomplete."""
        self._count(message)
        if hold and self._remaining == 0 and not self.finished and not self._held:
            self._held.append(message)
            return []
        messages = [*self._held, message]
        self._held.clear()
        return messages

    def _count(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            lengths = [
                int(value) for name, value in message["headers"] if name == b"content-length" and value.isdigit()
            ]
            empty = self._head_only or message["status"] in (204, 304)
            self._remaining = 0 if empty else lengths[0] if lengths else None
        else:
            if self._remaining is not None:
                self._remaining = max(0, self._remaining - len(message.get("body", b"")))
            self.finished = not message.get("more_body")


def _wsgi_scope(scope: Scope) -> Scope:
    """The scope without headers whose names contain an underscore, with all cookies in one header and a plain path.

    WSGI cannot distinguish `X_Forwarded_For`, which any client can send, from `X-Forwarded-For`, which the proxy sets.
    HTTP/2 clients may send cookies in several headers (RFC 9113, 8.2.3).
    """
    headers = [(name, value) for name, value in scope["headers"] if b"_" not in name]
    cookies = [value for name, value in headers if name.lower() == b"cookie"]
    if len(cookies) > 1:
        headers = [(name, value) for name, value in headers if name.lower() != b"cookie"]
        headers.append((b"cookie", b"; ".join(cookies)))
    return {**scope, "path": path_of(scope), "headers": headers}


class _AbortableApp:
    """A WSGI app whose response is aborted when the client disconnects, as on a WSGI server."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if "CONTENT_LENGTH" not in environ:
            environ["wsgi.input_terminated"] = True  # or Werkzeug would not read a chunked body
        # As on gunicorn with one worker. The adapter has sys.stdout, True, and no address on a unix socket.
        environ |= {"wsgi.errors": sys.stderr, "wsgi.multiprocess": False}
        environ.setdefault("REMOTE_ADDR", "")
        return _AbortableBody(self._app(environ, start_response), environ["asgi.scope"][_DISCONNECTED])


class _AbortableBody:
    """The body of a response, which ends early when the client has disconnected."""

    def __init__(self, body: Iterable[bytes], disconnected: asyncio.Future[None]) -> None:
        self._body = body
        self._disconnected = disconnected

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._body:
            if self._disconnected.done():
                return
            yield piece

    def close(self) -> None:
        getattr(self._body, "close", lambda: None)()
