"""The routes as an OpenAPI document: made of the table of routes, the views' docstrings and the tree of errors."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy

from quart_openai_sse.errors import (
    AuthenticationRequired,
    AuthUnavailable,
    ConfigurationError,
    Draining,
    InvalidLastEventID,
    InvalidRequest,
    KeyReused,
    ModelFailed,
    ModelNotFound,
    OpenAISSEError,
    OriginDenied,
    PermissionDenied,
    RequestTooLarge,
    RequestTooSlow,
    ServerShutdown,
    StartAbandoned,
    StreamExpired,
    StreamNotFound,
    StreamStopped,
    StreamTooLong,
    TokensSpent,
    TooManyStarts,
    TooManyStreams,
    UnsupportedMediaType,
    UpstreamError,
    UpstreamRefused,
)
from quart_openai_sse.protocol.requests import Schema
from quart_openai_sse.web.blueprint import ROUTES
from quart_openai_sse.web.openapi_schemas import HEADERS, PARAMETERS, SCHEMAS, SECURITY, ref
from quart_openai_sse.web.responses import STREAM_HEADERS
from quart_openai_sse.web.views import view_summary

__all__ = ["openapi_document"]

Errors = tuple[type[OpenAISSEError], ...]


def openapi_document(*, url_prefix: str = "/v1", routes: Collection[str] = frozenset(ROUTES)) -> Schema:
    """An OpenAPI 3.1 document of the groups *routes* below *url_prefix*, to be written as JSON.

    It says what the extension answers. What an app's own hooks refuse with, and how its login is named, is for the
    app to add. Raises `ValueError` for an unknown group.
    """
    if unknown := set(routes) - set(ROUTES):
        raise ValueError(f"Unknown routes: {', '.join(sorted(unknown))}; there are {', '.join(ROUTES)}.")
    paths: dict[str, Schema] = {}
    for group in (group for group in ROUTES if group in routes):
        for method, path, endpoint in ROUTES[group]:
            path = path.replace("<", "{").replace(">", "}")
            paths.setdefault(path, {})[method.lower()] = _operation(group, endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "quart-openai-sse",
            "version": _version(),
            "description": _ABOUT,
        },
        "servers": [{"url": url_prefix or "/"}],
        "security": [{"bearer": []}, {"cookie": []}],
        "paths": paths,
        # A copy: an app may change its document, and the schema of a chat request is what requests are checked by.
        "components": deepcopy(
            {
                "securitySchemes": SECURITY,
                "parameters": PARAMETERS,
                "headers": HEADERS,
                "schemas": {**SCHEMAS, "ErrorCode": _error_code()},
            }
        ),
    }


def _version() -> str:
    try:
        return importlib.metadata.version("quart-openai-sse")
    except importlib.metadata.PackageNotFoundError:  # it runs from a checkout
        return "0"


def subclasses(cls: type[OpenAISSEError]) -> Iterator[type[OpenAISSEError]]:
    """*cls*, and every class below it."""
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
    """A response for each status of *errors*, and for whole classes of status if an upstream's own are among them."""
    by_status: dict[str, list[type[OpenAISSEError]]] = {}
    for error in errors:
        if not issubclass(error, UpstreamRefused):
            by_status.setdefault(str(error.status), []).append(error)
    open_codes = UpstreamRefused in errors
    refusals = {status: _refusal(found, open_codes=open_codes) for status, found in sorted(by_status.items())}
    if open_codes:
        said = "An upstream refused the request: its own status and error."
        refusals |= {status: _error_response(said, *_RETRY_HEADERS) for status in ("4XX", "5XX")}
    return refusals


def _refusal(errors: list[type[OpenAISSEError]], *, open_codes: bool) -> Schema:
    said = "; ".join(f"`{error.code}`: {_first_sentence(error)}" for error in errors)
    headers = [] if all(error.retry_after is None for error in errors) and not open_codes else ["Retry-After"]
    headers += [] if all(error.should_retry is None for error in errors) and not open_codes else ["x-should-retry"]
    headers += ["WWW-Authenticate"] if AuthenticationRequired in errors else []
    response = _error_response(said, *headers)
    response["x-codes"] = sorted({code for error in errors for code in _codes(error)})
    return response


def _error_response(said: str, *headers: str) -> Schema:
    content = {"application/json": {"schema": ref("schemas", "Error")}}
    return {**_answer({"description": said, "headers": headers}), "content": content}


def _codes(error: type[OpenAISSEError]) -> tuple[str, ...]:
    return (str(error.code), *_FURTHER_CODES.get(error, ()))


def _first_sentence(error: type[OpenAISSEError]) -> str:
    return (error.__doc__ or "").partition("\n")[0].partition(". ")[0].rstrip(".")


def _error_code() -> Schema:
    """Every code of ours, and those of upstreams."""
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
    """A stream of events; the schema is that of each of them, as long as OpenAPI 3.1 has no better place for it."""
    return {"text/event-stream": {"schema": {"anyOf": [ref("schemas", name) for name in schemas]}}}


_ABOUT = """OpenAI-compatible streaming routes, and streams that can be resumed, watched and stopped.

Another path below the prefix is answered 404 (`not_found`), another method 405 (`method_not_allowed`) with `Allow`;
`HEAD` works where `GET` does. Once a stream has begun, a failure is its last event. An app's own hooks may refuse with
other statuses and codes."""

_RETRY_HEADERS = ("Retry-After", "x-should-retry")
_OF_EVERY_REQUEST = ("traceparent", "X-Trace-ID", "Accept-Language")

_FURTHER_CODES: Mapping[type[OpenAISSEError], tuple[str, ...]] = {
    InvalidRequest: ("invalid_json",),
    UpstreamError: ("upstream_pool_exhausted",),
}
"""Codes that single instances of a class have."""

_KNOWN: Errors = (AuthenticationRequired, PermissionDenied, InvalidRequest, AuthUnavailable, OpenAISSEError)
"""What is refused before it is known who calls, `X-On-Behalf-Of` included; and what is our own failure."""
_STARTED: Errors = (
    *(*_KNOWN, OriginDenied, RequestTooSlow, RequestTooLarge, UnsupportedMediaType),
    *(ModelNotFound, KeyReused, TooManyStreams, TooManyStarts, TokensSpent, StreamExpired, Draining, StartAbandoned),
    *(ModelFailed, StreamTooLong, StreamStopped, ServerShutdown),
    *subclasses(UpstreamError),
)
"""What may come between a request for a stream and its first output."""

_READING: Schema = {
    "description": "The stream, running or ended. An app's events come under their own names in the `text` format.",
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
                "description": "The answer: a stream of events if the body says `stream: true`, else one object.",
                "headers": ("X-Stream-Id",),
                "content": {**_json("ChatCompletion"), **_events("OpenAIEvent")},
            }
        },
        "errors": _STARTED,
    },
    "list_models": {
        "answers": {"200": {"description": "The models.", "content": _json("Models")}},
        "errors": (*_KNOWN, *subclasses(UpstreamError)),
    },
    "start_stream": {
        "parameters": ("Idempotency-Key", "format"),
        "requestBody": {"required": True, "content": _json("StreamRequest")},
        "answers": {
            "200": {
                "description": "The stream that the `Idempotency-Key` names; or the stream itself, for who accepts it.",
                "headers": ("Location", *_READING["headers"]),
                "content": {**_json("StreamAddress"), **_READING["content"]},
            },
            "201": {**_STREAM, "description": "It was started: where it can be read."},
        },
        "errors": _STARTED,
    },
    "list_streams": {
        "parameters": ("thread",),
        "answers": {"200": {"description": "The caller's running streams.", "content": _json("Streams")}},
        "errors": _KNOWN,
    },
    "read_stream": {
        "parameters": ("stream_id", "Last-Event-ID", "last_event_id", "format"),
        "answers": {"200": _READING, "204": {"description": "You have its end already."}},
        "errors": (*_KNOWN, InvalidLastEventID, StreamNotFound, StreamExpired),
    },
    "stop_stream": {
        "parameters": ("stream_id",),
        "answers": {"204": {"description": "It is stopped, or has ended."}},
        "errors": (*_KNOWN, OriginDenied, StreamNotFound),
    },
    "client": {
        "security": [],
        "answers": {
            "200": {"description": "The module.", "content": {"text/javascript": {"schema": {"type": "string"}}}},
            "304": {"description": "You have it already."},
        },
    },
    "health": {
        "security": [],
        "answers": {"200": {"description": "It runs.", "content": _json("Status")}},
    },
    "ready": {
        "security": [],
        "answers": {
            "200": {"description": "It takes requests.", "content": _json("Status")},
            "503": {"description": "It drains.", "content": _json("Status")},
        },
    },
}
"""By endpoint: parameters, body, what is answered, and the errors it may be refused with."""


# Components ---------------------------------------------------------------------------------------------------------
