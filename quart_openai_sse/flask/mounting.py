"""Beside an older app (extra `flask`): a WSGI app and a Quart app as one ASGI app, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from quart import Quart
from werkzeug.exceptions import ClientDisconnected

from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.web.middleware import ASGIApp, Message, Receive, Scope, Send, below

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["mount"]

T = TypeVar("T")

_LEFT = "quart_openai_sse.left"

LINGERING_TIME = 30.0
"""Seconds for which the rest of an upload that the app has not read is discarded, as nginx's option of this name."""
LINGERING_TIMEOUT = 2.0
"""Seconds of silence after which it no longer is. curl stops sending at an error status, and waits for the response."""

_draining: set[asyncio.Future[None]] = set()
"""The uploads that are discarded though their request is over."""


def mount(
    flask_app: WSGIApplication, quart_app: Quart, *, prefix: str | Collection[str] = "/v1", threads: int = 16
) -> ASGIApp:
    """One ASGI app: what is below *prefix*, or one of several, is for *quart_app*, everything else for *flask_app*.

    Paths are not changed: the Quart app's own routes begin with the prefix. *threads* is how many requests the Flask
    app answers at a time; streams take none of them. Headers whose names have an underscore are not passed to the
    Flask app. Raises `ConfigurationError` for an invalid prefix.
    """
    prefixes = {each.rstrip("/") for each in ([prefix] if isinstance(prefix, str) else prefix)}
    if not prefixes or not all(each.startswith("/") for each in prefixes):
        raise ConfigurationError('mount needs prefix= as paths that begin with "/", and are longer than that.')
    if threads < 1:
        raise ConfigurationError("mount(): threads must be at least 1.")
    from a2wsgi import WSGIMiddleware  # here, so that share_session works without the extra

    adapter = WSGIMiddleware(cast(Any, _Leavable(flask_app)), workers=threads)
    return _Mounted(cast(ASGIApp, adapter), cast(ASGIApp, quart_app), prefixes)


class _Mounted:
    def __init__(self, flask_app: ASGIApp, quart_app: ASGIApp, prefixes: Collection[str]) -> None:
        self._flask_app = flask_app
        self._quart_app = quart_app
        self._prefixes = prefixes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection, or the server's life."""
        if scope["type"] == "lifespan" or below(scope, self._prefixes):
            await self._quart_app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})  # before it is accepted: the server answers 403
        else:
            await _Request(scope, receive, send).run(self._flask_app)


class _Request:
    """One request of the old app. If the client disconnects, or the server gives it up, its thread ends too."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        self._client = _Client()
        self._upload = _Upload(receive)
        self._response = _Response(scope["method"])
        self._failures: list[Exception] = []
        self._scope = {**_for_wsgi(scope), _LEFT: self._client.left}

    async def run(self, app: ASGIApp) -> None:
        """Returns when the app's thread has ended. Raises what the app raised, or the server."""
        # Always, since the adapter listens only while it reads the body, and servers tell a sender nothing.
        listening = asyncio.ensure_future(self._upload.listen())
        listening.add_done_callback(self._client.leave)
        answering = asyncio.ensure_future(app(self._scope, self._receive_until_left, self._send_until_left))
        try:
            await asyncio.shield(answering)
            if self._failures:
                raise self._failures[0]
        except Exception:
            await self._client.unless_left(self._upload.discard(), None)
            if not self._client.left.done() and not self._upload.complete:
                # hypercorn can't close a connection while it has more for the app: what comes until then is discarded.
                _draining.add(listening)
                listening.add_done_callback(_draining.discard)
            raise
        finally:
            self._client.leave()
            ending: set[asyncio.Future[None]] = {answering}
            if listening not in _draining:
                listening.cancel()
                ending.add(listening)
            await asyncio.wait(ending)

    async def _receive_until_left(self) -> Message:
        # What has arrived first: a whole request is carried out, also for a client that did not wait.
        message = self._upload.arrived() or await self._client.unless_left(self._upload.read(), None)
        if message is None:
            raise ClientDisconnected  # the adapter would take it for the end of the body
        return message

    async def _send_until_left(self, message: Message) -> None:
        try:
            for each in self._response.sendable(message, hold=not self._upload.complete):
                if self._response.finished:
                    await self._client.unless_left(self._upload.discard(), None)
                if self._client.left.done():  # else what broke off would end like something whole
                    return
                await self._client.unless_left(self._send(each), None)
        except Exception as error:
            # Raised here it would end the adapter's sender, and the thread would wait for that for ever.
            self._failures.append(error)
            self._client.leave()


class _Client:
    """Whether the client is still there."""

    def __init__(self) -> None:
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def leave(self, *_: Any) -> None:
        """It has disconnected, or the server has given up its request."""
        if not self.left.done():
            self.left.set_result(None)

    async def unless_left(self, awaitable: Awaitable[T], otherwise: T) -> T:
        """The result of *awaitable*, or *otherwise* once the client has left."""
        task = asyncio.ensure_future(awaitable)
        either: set[asyncio.Future[Any]] = {task, self.left}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else otherwise
        finally:
            task.cancel()


class _Upload:
    """The body of a request: the app reads it, and what it has not read when its response ends is discarded.

    At most one message waits here. While it waits, the server is asked for no more, so that the client must wait too.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._waiting: asyncio.Queue[Message] = asyncio.Queue(1)
        self._discarded = False
        self.complete = False

    async def listen(self) -> None:
        """Returns when the client has disconnected, or when the server has ended the response."""
        while (message := await self._receive())["type"] != "http.disconnect":
            self.complete = not message.get("more_body")
            if not self._discarded:
                await self._waiting.put(message)

    async def read(self) -> Message:
        """The next message of the body."""
        return await self._waiting.get()

    def arrived(self) -> Message | None:
        """The next message of the body, if it is here."""
        return None if self._waiting.empty() else self._waiting.get_nowait()

    async def discard(self) -> None:
        """Discards what the app has not read; returns when the body has arrived whole, or its time is over.

        Call it before the response ends. A server that ends a response closes a connection that is still receiving,
        and many clients that are still sending then fail without having read the response.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGERING_TIME):
                while not self.complete and not self._discarded:
                    async with asyncio.timeout(LINGERING_TIMEOUT):
                        await self.read()
        # From now on listen() does it: hypercorn can't close the connection while its queue for the app is full.
        self._discarded = True
        self.arrived()


class _Response:
    """Holds back the message that completes a response, as long as the app may still read the request's body.

    With the last byte of a Content-Length granian ends the response, without waiting for the last message.
    """

    def __init__(self, method: str) -> None:
        self._head_only = method == "HEAD"
        self._missing: int | None = None
        self._held: list[Message] = []
        self.finished = False

    def sendable(self, message: Message, *, hold: bool) -> list[Message]:
        """The messages to send now that the app has sent *message*. *hold*: the request's body is not complete."""
        self._count(message)
        if hold and self._missing == 0 and not self.finished and not self._held:
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
            self._missing = 0 if empty else lengths[0] if lengths else None
        else:
            if self._missing is not None:
                self._missing = max(0, self._missing - len(message.get("body", b"")))
            self.finished = not message.get("more_body")


def _for_wsgi(scope: Scope) -> Scope:
    """The scope without headers whose names have an underscore, and with its cookies in one header.

    WSGI can't tell `X_Forwarded_For`, which anybody may send, from `X-Forwarded-For`, which the proxy sets. HTTP/2 may
    send cookies in several headers (RFC 9113, 8.2.3).
    """
    headers = [(name, value) for name, value in scope["headers"] if b"_" not in name]
    cookies = [value for name, value in headers if name.lower() == b"cookie"]
    if len(cookies) > 1:
        headers = [(name, value) for name, value in headers if name.lower() != b"cookie"]
        headers.append((b"cookie", b"; ".join(cookies)))
    return {**scope, "headers": headers}


class _Leavable:
    """A WSGI app whose response breaks off once nobody is there for it, as on a socket that is closed."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if "CONTENT_LENGTH" not in environ:
            environ["wsgi.input_terminated"] = True  # without it Werkzeug reads nothing of a chunked body
        return _Leaving(self._app(environ, start_response), environ["asgi.scope"][_LEFT])


class _Leaving:
    def __init__(self, body: Iterable[bytes], left: asyncio.Future[None]) -> None:
        self._body = body
        self._left = left

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._body:
            if self._left.done():
                return
            yield piece

    def close(self) -> None:
        getattr(self._body, "close", lambda: None)()
