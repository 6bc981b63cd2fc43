"""A transport with which the client of a library asks this app's own routes, without a socket and as a principal."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn, Self, cast

from quart import Quart
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter, RequestRedirect

from quart_openai_sse.auth.in_process import CALLER, Caller
from quart_openai_sse.errors import NestedTooDeep, OpenAISSEError, RouteNotFound, english
from quart_openai_sse.formats import json_refusal
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers.library_errors import IN_PROCESS
from quart_openai_sse.protocol.trace_context import current_trace_id
from quart_openai_sse.web.blueprint import create_blueprint
from quart_openai_sse.web.exchange import Exchange, depth_of_request, stream_class
from quart_openai_sse.web.middleware import Scope, below

_LIBRARIES = ("httpx", "httpx2")
_CREDENTIALS = frozenset({b"authorization", b"proxy-authorization", b"cookie", b"api-key", b"x-api-key"})
_DEEPEST = 5  # requests within each other
_CLOSING = 1  # seconds in which the app is to end after its client was closed


class InProcessTransport:
    """Passes the requests of a client of httpx or httpx2 to *app*, as *principal*.

    Several clients may use it, on several event loops. As with any transport of httpx, a client that is closed ends the
    responses of the other ones on its event loop.
    """

    def __init__(self, app: Quart, *, principal: Principal, instance: str, prefixes: Collection[str]) -> None:
        # The request is not from a page, so its origin is not checked.
        self._caller = Caller(replace(principal, cookie=False), instance, app)
        self._prefixes = prefixes
        self._opened: set[Exchange] = set()

    async def handle_async_request(self, request: Any) -> Any:
        """Sends *request*, and returns the response as soon as the app begins it. Raises the library's errors."""
        library = _library_of(request)
        request.extensions[IN_PROCESS] = True
        scope = _scope(request)
        app = self._caller.app
        if not (below(scope, self._prefixes) and _is_of_ours(app, scope)):
            return _refuse(library, RouteNotFound(_elsewhere(app, request.url, self._prefixes)))
        if (depth := depth_of_request.get() + 1) > _DEEPEST:
            return _refuse(library, NestedTooDeep(f"More than {_DEEPEST} requests through ai.transport() are nested."))
        scope[CALLER] = self._caller
        exchange = Exchange(library, await request.aread(), request.extensions.get("timeout", {}).get("read"))
        exchange.begin(app, scope, depth)
        self._opened.add(exchange)
        exchange.task.add_done_callback(lambda _: self._opened.discard(exchange))
        head = await exchange.head()
        stream = stream_class(library)(exchange)
        return library.Response(head["status"], headers=list(head.get("headers", ())), stream=stream)

    async def aclose(self) -> None:
        """Ends the responses on this event loop that are not complete. Waits for the app, at most a second."""
        loop = asyncio.get_running_loop()
        # An exchange's events belong to its own loop; other threads change the set meanwhile.
        opened = [each for each in self._opened.copy() if each.task.get_loop() is loop]
        for exchange in opened:
            exchange.close()
        if opened:
            await asyncio.wait([each.task for each in opened], timeout=_CLOSING)

    def handle_request(self, request: Any = None) -> NoReturn:
        """Raises `TypeError`: it is what a synchronous client calls."""
        raise TypeError("ai.transport() is for an AsyncClient of httpx or httpx2, and not for a synchronous client.")

    __enter__ = handle_request  # as `with httpx.Client(...)` does

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


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


def _is_of_ours(app: Quart, scope: Scope) -> bool:
    """Whether the app's router passes the request to a blueprint of the extension."""
    headers = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]])
    request = app.request_class(
        scope["method"],
        scope["scheme"],
        scope["path"],
        scope["query_string"],
        headers,
        scope["root_path"],
        scope["http_version"],
        scope,  # type: ignore[arg-type]
        send_push_promise=_push_nothing,
    )
    try:
        endpoint = cast(MapAdapter, app.create_url_adapter(request)).match()[0]
    except RequestRedirect:  # to the usual form of the path: no view runs, and the next request is checked as well
        return True
    except HTTPException:
        return False
    blueprint = app.blueprints.get(endpoint.rpartition(".")[0])
    return blueprint is not None and blueprint.import_name == create_blueprint.__module__


async def _push_nothing(path: str, headers: Headers) -> None:
    """The request is only for the router."""


def _elsewhere(app: Quart, url: Any, prefixes: Collection[str]) -> str:
    ours = " or ".join(sorted(prefix or "/" for prefix in prefixes))
    message = f"ai.transport() reaches only the extension's own routes, below {ours}, and not {url.path}."
    if server_name := app.config["SERVER_NAME"]:
        message += f" The request is to {url.host}, and the app's SERVER_NAME is {server_name}."
    return message


def _refuse(library: Any, error: OpenAISSEError) -> Any:
    body, content_type = json_refusal(error, english)
    return library.Response(error.status, headers={"Content-Type": content_type, **error.headers()}, content=body)
