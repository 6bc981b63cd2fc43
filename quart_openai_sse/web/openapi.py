"""The OpenAPI document of the routes, built from the table of routes, the views' docstrings and the errors."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy

from quart_openai_sse.errors import (
    AuthenticationRequired,
    AuthUnavailable,
    ConfigurationError,
    Draining,
    HookTimeout,
    InvalidLastEventID,
    InvalidRequest,
    KeyReused,
    LogUnavailable,
    MemoryFull,
    ModelFailed,
    ModelNotFound,
    ModelTimeout,
    OpenAISSEError,
    OriginDenied,
    PermissionDenied,
    ProducerLost,
    RequestTooLarge,
    RequestTooSlow,
    ServerShutdown,
    StartAbandoned,
    StreamExpired,
    StreamNotFound,
    StreamStopped,
    StreamTooLong,
    TokensSpent,
    TooManyReaders,
    TooManyStarts,
    TooManyStreams,
    UnsupportedMediaType,
    UpstreamError,
    UpstreamRefused,
)
from quart_openai_sse.protocol.requests import Schema
from quart_openai_sse.web.blueprint import ROUTES
from quart_openai_sse.web.event_stream import STREAM_HEADERS
from quart_openai_sse.web.openapi_schemas import HEADERS, PARAMETERS, SCHEMAS, SECURITY, ref
from quart_openai_sse.web.views import view_summary

__all__ = ["openapi_document"]

Errors = tuple[type[OpenAISSEError], ...]


def openapi_document(
    *,
    url_prefix: str = "/v1",
    routes: Collection[str] = frozenset(ROUTES),
    formats: Mapping[str, str] | None = None,
) -> Schema:
    """An OpenAPI 3.1 document of the groups *routes* below *url_prefix*, as a `dict` that can be encoded as JSON.

    *formats* are the formats that the app has registered: their content types by their names.

    It describes the extension's own responses. You may change it, for example to add the errors of your hooks and the
    security scheme of your login. Raises `ValueError` for an unknown group.
    """
    if unknown := set(routes) - set(ROUTES):
        raise ValueError(f"Unknown routes: {', '.join(sorted(unknown))}; the groups are {', '.join(ROUTES)}.")
    paths: dict[str, Schema] = {}
    for group in (group for group in ROUTES if group in routes):
        for method, path, endpoint in ROUTES[group]:
            path = path.replace("<", "{").replace(">", "}")
            paths.setdefault(path, {})[method.lower()] = _operation(group, endpoint)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "quart-openai-sse",
            "version": _version(),
            "description": _ABOUT,
        },
        "servers": [{"url": url_prefix or "/"}],
        "security": [{"bearer": []}, {"cookie": []}],
        "paths": paths,
        "components": {
            "securitySchemes": SECURITY,
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "schemas": {**SCHEMAS, "ErrorCode": _error_code()},
        },
    }
    # A copy, since an app may change its document, and requests are checked with the schemas in it.
    document = deepcopy(document)
    _add_formats(document, formats or {})
    return document


def _add_formats(document: Schema, formats: Mapping[str, str]) -> None:
    """Adds the formats of the app: their names to the parameter, their content types to the responses."""
    parameter = document["components"]["parameters"]["format"]["schema"]
    parameter["enum"] = sorted({*parameter["enum"], *formats})
    for operations in document["paths"].values():
        for operation in operations.values():
            if ref("parameters", "format") in operation["parameters"]:
                for content_type in formats.values():
                    content = operation["responses"]["200"]["content"]
                    content.setdefault(content_type.partition(";")[0], {"schema": {"type": "string"}})


def _version() -> str:
    try:
        return importlib.metadata.version("quart-openai-sse")
    except importlib.metadata.PackageNotFoundError:  # it runs from a checkout
        return "0"


def subclasses(cls: type[OpenAISSEError]) -> Iterator[type[OpenAISSEError]]:
    """*cls* and all classes derived from it."""
    yield cls
    for each in cls.__subclasses__():
        yield from subclasses(each)


# Operations ---------------------------------------------------------------------------------------------------------


def _operation(group: str, endpoint: str) -> Schema:
    details = dict(_OPERATIONS[endpoint])
    errors: Errors = details.pop("errors", ())
    answers: Mapping[str, Schema] = details.pop("answers")
    parameters = [*details.pop("parameters", ()), *_OF_EVERY_REQUEST]
    return {
        "operationId": endpoint,
        "tags": [group],
        "summary": view_summary(endpoint),
        "parameters": [ref("parameters", name) for name in parameters],
        **details,
        "responses": {**{status: _answer(answer) for status, answer in answers.items()}, **_refusals(errors)},
    }


def _answer(answer: Schema) -> Schema:
    headers = {name: ref("headers", name) for name in (*answer.get("headers", ()), "x-request-id")}
    return {**answer, "headers": headers}


def _refusals(errors: Errors) -> dict[str, Schema]:
    """A response for each status of *errors*; also for `4XX` and `5XX` if an upstream's own status is among them."""
    by_status: dict[str, list[type[OpenAISSEError]]] = {}
    for error in errors:
        if not issubclass(error, UpstreamRefused):
            by_status.setdefault(str(error.status), []).append(error)
    open_codes = UpstreamRefused in errors
    refusals = {status: _refusal(found, open_codes=open_codes) for status, found in sorted(by_status.items())}
    if open_codes:
        description = "The upstream refused the request; the status and the error are the upstream's."
        refusals |= {status: _error_response(description, *_RETRY_HEADERS) for status in ("4XX", "5XX")}
    return refusals


def _refusal(errors: list[type[OpenAISSEError]], *, open_codes: bool) -> Schema:
    description = "; ".join(f"`{error.code}`: {_first_sentence(error)}" for error in errors)
    headers = [] if all(error.retry_after is None for error in errors) and not open_codes else ["Retry-After"]
    headers += [] if all(error.should_retry is None for error in errors) and not open_codes else ["x-should-retry"]
    headers += ["WWW-Authenticate"] if AuthenticationRequired in errors else []
    response = _error_response(description, *headers)
    response["x-codes"] = sorted({code for error in errors for code in _codes(error)})
    return response


def _error_response(description: str, *headers: str) -> Schema:
    return {**_answer({"description": description, "headers": headers}), "content": _json("Error")}


def _codes(error: type[OpenAISSEError]) -> tuple[str, ...]:
    return (str(error.code), *_FURTHER_CODES.get(error, ()))


def _first_sentence(error: type[OpenAISSEError]) -> str:
    return (error.__doc__ or "").partition("\n")[0].partition(". ")[0].rstrip(".")


def _error_code() -> Schema:
    """The schema of an error's code: each of our codes, or any code of an upstream."""
    meanings = {
        code: _first_sentence(error)
        for error in subclasses(OpenAISSEError)
        if error is not ConfigurationError and error.__module__ == OpenAISSEError.__module__
        for code in _codes(error)
    }
    ours = [{"const": code, "description": meaning} for code, meaning in sorted(meanings.items())]
    return {"anyOf": [*ours, {"type": ["string", "null"], "description": "An upstream's own code."}]}


def _json(schema: str) -> Schema:
    return {"application/json": {"schema": ref("schemas", schema)}}


def _events(*schemas: str) -> Schema:
    """A stream of events. The schema is that of one event: OpenAPI 3.1 has no keyword for the items of a stream."""
    return {"text/event-stream": {"schema": {"anyOf": [ref("schemas", name) for name in schemas]}}}


_ABOUT = """OpenAI-compatible streaming routes, and streams that can be resumed, watched and stopped.

For another path below the prefix the response is 404 (`not_found`), and for another method 405 (`method_not_allowed`)
with an `Allow` header. `HEAD` works where `GET` does. Once a stream has begun, a failure is its last event. An app's
own hooks may refuse requests with other statuses and codes."""

_RETRY_HEADERS = ("Retry-After", "x-should-retry")
_OF_EVERY_REQUEST = ("traceparent", "X-Trace-ID", "Accept-Language")

_FURTHER_CODES: Mapping[type[OpenAISSEError], tuple[str, ...]] = {
    InvalidRequest: ("invalid_json",),
    UpstreamError: ("upstream_pool_exhausted",),
}
"""Codes that some instances of a class have instead of the class's own."""

_ALWAYS: Errors = (AuthenticationRequired, PermissionDenied, InvalidRequest, AuthUnavailable, OpenAISSEError)
"""The errors of every route that needs a principal: those of an auth hook, and our own failure."""
_STARTED: Errors = (
    *(*_ALWAYS, OriginDenied, RequestTooSlow, RequestTooLarge, UnsupportedMediaType),
    *(ModelNotFound, KeyReused, TooManyStreams, TooManyStarts, TokensSpent, StreamExpired, Draining, StartAbandoned),
    *(MemoryFull, LogUnavailable, TooManyReaders),
    *(HookTimeout, ModelFailed, StreamTooLong, StreamStopped, ServerShutdown, ProducerLost),
    *subclasses(ModelTimeout),
    *subclasses(UpstreamError),
)
"""The errors of a route that starts a stream, until its first output."""

_READING: Schema = {
    "description": "The stream, running or ended. In the `text` format an app's events have their own names.",
    "headers": ("X-Stream-Id", *STREAM_HEADERS),
    "content": _events("TextEvent", "OpenAIEvent"),
}
_STREAM: Schema = {"description": "The stream.", "headers": ("Location",), "content": _json("StreamAddress")}

_OPERATIONS: Mapping[str, Schema] = {
    "chat_completions": {
        "parameters": ("Idempotency-Key",),
        "requestBody": {"required": True, "content": _json("ChatRequest")},
        "answers": {
            "200": {
                "description": "A stream of events if the body has `stream: true`, else one object.",
                "headers": ("X-Stream-Id",),
                "content": {**_json("ChatCompletion"), **_events("OpenAIEvent")},
            }
        },
        "errors": _STARTED,
    },
    "list_models": {
        "answers": {"200": {"description": "The models.", "content": _json("Models")}},
        "errors": (*_ALWAYS, *subclasses(UpstreamError)),
    },
    "start_stream": {
        "parameters": ("Idempotency-Key", "format"),
        "requestBody": {"required": True, "content": _json("StreamRequest")},
        "answers": {
            "200": {
                "description": "The stream of this `Idempotency-Key`; or its events, for a client that accepts those.",
                "headers": ("Location", *_READING["headers"]),
                "content": {**_json("StreamAddress"), **_READING["content"]},
            },
            "201": {**_STREAM, "description": "The stream was started, and can be read at `url`."},
        },
        "errors": _STARTED,
    },
    "list_streams": {
        "parameters": ("thread",),
        "answers": {"200": {"description": "The caller's running streams.", "content": _json("Streams")}},
        "errors": (*_ALWAYS, LogUnavailable),
    },
    "read_stream": {
        "parameters": ("stream_id", "Last-Event-ID", "last_event_id", "format"),
        "answers": {"200": _READING, "204": {"description": "The last event ID is the end of the stream."}},
        "errors": (*_ALWAYS, InvalidLastEventID, StreamNotFound, StreamExpired, TooManyReaders, LogUnavailable),
    },
    "stop_stream": {
        "parameters": ("stream_id",),
        "answers": {"204": {"description": "The stream has been stopped, or had ended."}},
        "errors": (*_ALWAYS, OriginDenied, StreamNotFound, LogUnavailable),
    },
    "client": {
        "security": [],
        "answers": {
            "200": {
                "description": "An ES module.",
                "content": {"text/javascript": {"schema": {"type": "string"}}},
            },
            "304": {"description": "The module has not changed."},
        },
    },
    "health": {
        "security": [],
        "answers": {"200": {"description": "The server runs.", "content": _json("Status")}},
    },
    "ready": {
        "security": [],
        "answers": {
            "200": {"description": "The server accepts requests.", "content": _json("Status")},
            "503": {
                "description": "The server is draining, or the stream log is unavailable.",
                "content": _json("Status"),
            },
        },
    },
}
"""By endpoint: the parameters, the body, the responses and the errors."""
