"""Beside an older app (extra `flask`): a WSGI app and a Quart app as one ASGI app, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from a2wsgi import WSGIMiddleware
from quart import Quart
from werkzeug.exceptions import ClientDisconnected

from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.middleware import ASGIApp, Message, Receive, Scope, Send, below

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["mount"]

T = TypeVar("T")

_LEFT = "quart_openai_sse.left"


def mount(
    flask_app: WSGIApplication, quart_app: Quart, *, prefix: str | Collection[str] = "/v1", threads: int = 16
) -> ASGIApp:
    """One ASGI app: what is below *prefix*, or one of several, is for *quart_app*, everything else for *flask_app*.

    Paths are not changed: the Quart app's own routes begin with the prefix. *threads* is how many requests the Flask
    app answers at a time; streams take none of them. Raises `ConfigurationError` for a prefix that is none.
    """
    prefixes = {each.rstrip("/") for each in ([prefix] if isinstance(prefix, str) else prefix)}
    if not prefixes or not all(each.startswith("/") for each in prefixes):
        raise ConfigurationError('mount needs prefix= as paths that begin with "/", and are longer than that.')
    if threads < 1:
        raise ConfigurationError("mount needs at least one of threads=.")
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
            await _in_a_thread(self._flask_app, scope, receive, send)


async def _in_a_thread(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """One request of the old app. If the client leaves, or the server gives it up, its thread ends too."""
    left = asyncio.get_running_loop().create_future()
    arrived: asyncio.Queue[Message] = asyncio.Queue(1)

    async def listen() -> None:
        # Always, since the adapter listens only while it reads the body, and servers say nothing to who sends.
        while (message := await receive())["type"] != "http.disconnect":
            await arrived.put(message)
        leave()

    def leave(*_: Any) -> None:
        if not left.done():
            left.set_result(None)

    async def until_left(awaitable: Awaitable[T], otherwise: T) -> T:
        task = asyncio.ensure_future(awaitable)
        try:
            await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else otherwise
        finally:
            task.cancel()

    async def receive_until_left() -> Message:
        # What has arrived first: a whole request is carried out, also for a client that did not wait.
        message = await until_left(arrived.get(), None) if arrived.empty() else arrived.get_nowait()
        if message is None:
            raise ClientDisconnected  # the adapter would take it for the end of the body
        return message

    async def send_until_left(message: Message) -> None:
        if not left.done():  # else what broke off would end like something whole
            await until_left(send(message), None)

    listening = asyncio.ensure_future(listen())
    listening.add_done_callback(leave)
    answering = asyncio.ensure_future(app({**_for_wsgi(scope), _LEFT: left}, receive_until_left, send_until_left))
    try:
        await asyncio.shield(answering)
    finally:
        listening.cancel()
        leave()
        await asyncio.wait({answering, listening})


def _for_wsgi(scope: Scope) -> Scope:
    """The scope with its cookies in one header: HTTP/2 may send them in several (RFC 9113, 8.2.3)."""
    cookies = [value for name, value in scope["headers"] if name.lower() == b"cookie"]
    if len(cookies) < 2:
        return scope
    others = [(name, value) for name, value in scope["headers"] if name.lower() != b"cookie"]
    return {**scope, "headers": [*others, (b"cookie", b"; ".join(cookies))]}


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
