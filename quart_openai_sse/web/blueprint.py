"""The routes: OpenAI's own, and streams that can be resumed, watched and stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from quart import Blueprint, Response, request
from werkzeug.exceptions import HTTPException

from quart_openai_sse.auth.authentication import Authenticate
from quart_openai_sse.errors import (
    AuthenticationRequired,
    Draining,
    MethodNotAllowed,
    OpenAISSEError,
    PermissionDenied,
    RequestError,
    RequestTooLarge,
    RequestTooSlow,
    RouteNotFound,
)
from quart_openai_sse.formats.registry import Formats
from quart_openai_sse.protocol.trace_context import current_trace_id
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.web.responses import error_response, respond_to_error
from quart_openai_sse.web.views import Views

logger = logging.getLogger("quart_openai_sse")

ROUTES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "chat": (("POST", "/chat/completions", "chat_completions"),),
    "models": (("GET", "/models", "list_models"), ("GET", "/models/<path:model>", "retrieve_model")),
    "streams": (
        ("POST", "/streams", "start_stream"),
        ("GET", "/streams", "list_streams"),
        ("GET", "/streams/<stream_id>", "read_stream"),
        ("DELETE", "/streams/<stream_id>", "stop_stream"),
        ("GET", "/client.js", "client"),
    ),
    "health": (("GET", "/health", "health"), ("GET", "/ready", "ready")),
}
"""The routes by group: method, path and endpoint. A blueprint can omit any group."""

BODY_PATHS = frozenset(path for group in ROUTES.values() for method, path, _ in group if method == "POST")
"""The paths whose requests have bodies."""

EXPOSED_HEADERS = ("Location", "Retry-After", "x-request-id", "x-should-retry", "X-Stream-Id", "X-Trace-ID")
"""The response headers to expose to pages of other origins: for quart-cors' `expose_headers`."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})


def create_blueprint(
    name: str,
    *,
    url_prefix: str,
    relay: Callable[[], Relay],
    auth: Authenticate,
    formats: Formats,
    models: Collection[str] | None = None,
    routes: Collection[str] = frozenset(ROUTES),
) -> Blueprint:
    """A blueprint with the groups *routes*. *auth* is the auth hook; *models* are allowed (`None`: as configured).

    *relay* returns the current app's engine; *formats* are those of the instance. Raises `ValueError` for an unknown
    group.
    """
    if unknown := set(routes) - set(ROUTES):
        raise ValueError(f"Unknown routes: {', '.join(sorted(unknown))}; there are {', '.join(ROUTES)}.")
    blueprint = Blueprint(name, __name__, url_prefix=url_prefix)
    views = Views(relay, auth, models, formats)
    methods: dict[str, set[str]] = {}
    for group in ROUTES:
        for method, path, endpoint in ROUTES[group] if group in routes else ():
            blueprint.add_url_rule(
                path, endpoint, getattr(views, endpoint), methods=[method], provide_automatic_options=False
            )
            methods.setdefault(path, set()).update({"GET", "HEAD"} if method == "GET" else {method})
    for path, allowed in methods.items():
        _refuse_other_methods(blueprint, path, allowed)
    if url_prefix:
        for path in ("/", "/<path:_>"):
            blueprint.add_url_rule(path, "not_found", _not_found, methods=sorted(_METHODS), strict_slashes=False)
    blueprint.register_error_handler(OpenAISSEError, respond_to_error)
    blueprint.register_error_handler(HTTPException, _on_http_exception)
    blueprint.register_error_handler(Exception, _on_exception)
    blueprint.after_request(_add_request_id)
    return blueprint


def _refuse_other_methods(blueprint: Blueprint, path: str, allowed: Collection[str]) -> None:
    # Quart's own response to OPTIONS would also name the methods that are refused here.
    allow = ", ".join(sorted({*allowed, "OPTIONS"}))

    async def refuse(**_: Any) -> Response:
        if request.method == "OPTIONS":
            return Response(status=204, headers={"Allow": allow})
        response = error_response(MethodNotAllowed(f"Use {' or '.join(sorted(allowed))}."))
        response.headers["Allow"] = allow
        return response

    endpoint = f"other methods of {path}".replace(".", "_")
    methods = {*_METHODS, "OPTIONS"} - set(allowed)
    blueprint.add_url_rule(path, endpoint, refuse, methods=sorted(methods), provide_automatic_options=False)


async def _not_found(**_: Any) -> Response:
    return error_response(RouteNotFound("There is no such route."))


async def _on_http_exception(error: HTTPException) -> Response:
    """The exception with which a hook aborted, in OpenAI's shape."""
    status = error.code or 500
    known: dict[int, type[OpenAISSEError]] = {
        401: AuthenticationRequired,
        403: PermissionDenied,
        408: RequestTooSlow,
        413: RequestTooLarge,
        503: Draining,
    }
    cls = known.get(status, RequestError if status < 500 else OpenAISSEError)
    converted = cls(error.description or "")
    converted.status = status
    return error_response(converted)


async def _on_exception(error: Exception) -> Response:
    logger.error("a view raised", exc_info=error)
    return error_response(OpenAISSEError())


async def _add_request_id(response: Response) -> Response:
    if (trace_id := current_trace_id()) and "x-request-id" not in response.headers:
        response.headers["x-request-id"] = trace_id
    return response
