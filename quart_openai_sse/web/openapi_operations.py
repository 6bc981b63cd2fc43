"""What the OpenAPI document says of each route: parameters, body, responses and errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from quart_openai_sse.errors import (
    AuthenticationRequired,
    AuthUnavailable,
    Draining,
    HookTimeout,
    InvalidLastEventID,
    InvalidRequest,
    KeyReused,
    LimitsUnavailable,
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
)
from quart_openai_sse.protocol.members import Schema
from quart_openai_sse.web.event_stream import STREAM_HEADERS
from quart_openai_sse.web.openapi_schemas import ref

Errors = tuple[type[OpenAISSEError], ...]


def subclasses(cls: type[OpenAISSEError]) -> Iterator[type[OpenAISSEError]]:
    """*cls* and all classes derived from it."""
    yield cls
    for each in cls.__subclasses__():
        yield from subclasses(each)


def json_content(schema: str) -> Schema:
    """The content of a JSON body, by the name of its schema."""
    return {"application/json": {"schema": ref("schemas", schema)}}


def _events(*schemas: str) -> Schema:
    """A stream of events. The schema is that of one event: OpenAPI 3.1 has no keyword for the items of a stream."""
    return {"text/event-stream": {"schema": {"anyOf": [ref("schemas", name) for name in schemas]}}}


FURTHER_CODES: Mapping[type[OpenAISSEError], tuple[str, ...]] = {
    InvalidRequest: ("invalid_json",),
    UpstreamError: ("upstream_pool_exhausted",),
}
"""Codes that some instances of a class have instead of the class's own."""

_ALWAYS: Errors = (AuthenticationRequired, PermissionDenied, InvalidRequest, AuthUnavailable, OpenAISSEError)
"""The errors of every route that needs a principal: those of an auth hook, and our own failure."""
_STARTED: Errors = (
    *(*_ALWAYS, OriginDenied, RequestTooSlow, RequestTooLarge, UnsupportedMediaType),
    *(ModelNotFound, KeyReused, TooManyStreams, TooManyStarts, TokensSpent, StreamExpired, Draining, StartAbandoned),
    *(MemoryFull, LogUnavailable, LimitsUnavailable, TooManyReaders),
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
_STREAM: Schema = {"description": "The stream.", "headers": ("Location",), "content": json_content("StreamAddress")}

OPERATIONS: Mapping[str, Schema] = {
    "chat_completions": {
        "parameters": ("Idempotency-Key",),
        "requestBody": {"required": True, "content": json_content("ChatRequest")},
        "answers": {
            "200": {
                "description": "A stream of events if the body has `stream: true`, else one object.",
                "headers": ("X-Stream-Id",),
                "content": {**json_content("ChatCompletion"), **_events("OpenAIEvent")},
            }
        },
        "errors": _STARTED,
    },
    "list_models": {
        "answers": {"200": {"description": "The models.", "content": json_content("Models")}},
        "errors": (*_ALWAYS, *subclasses(UpstreamError)),
    },
    "retrieve_model": {
        "parameters": ("model",),
        "answers": {"200": {"description": "The model.", "content": json_content("Model")}},
        "errors": (*_ALWAYS, ModelNotFound, *subclasses(UpstreamError)),
    },
    "start_stream": {
        "parameters": ("Idempotency-Key", "format"),
        "requestBody": {"required": True, "content": json_content("StreamRequest")},
        "answers": {
            "200": {
                "description": "The stream of this `Idempotency-Key`; or its events, for a client that accepts those.",
                "headers": ("Location", *_READING["headers"]),
                "content": {**json_content("StreamAddress"), **_READING["content"]},
            },
            "201": {**_STREAM, "description": "The stream was started, and can be read at `url`."},
        },
        "errors": _STARTED,
    },
    "list_streams": {
        "parameters": ("thread",),
        "answers": {"200": {"description": "The caller's running streams.", "content": json_content("Streams")}},
        "errors": (*_ALWAYS, LogUnavailable),
    },
    "read_stream": {
        "parameters": ("stream_id", "Last-Event-ID", "last_event_id", "format"),
        "answers": {"200": _READING, "204": {"description": "The last event ID is the end of the stream."}},
        "errors": (*_ALWAYS, InvalidLastEventID, StreamNotFound, StreamExpired, TooManyReaders, LogUnavailable),
    },
    "stop_stream": {
        "parameters": ("stream_id", "erase"),
        "answers": {"204": {"description": "The stream has been stopped, or had ended; with `erase`, it is removed."}},
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
        "answers": {"200": {"description": "The server runs.", "content": json_content("Status")}},
    },
    "ready": {
        "security": [],
        "answers": {
            "200": {"description": "The server accepts requests.", "content": json_content("Status")},
            "503": {
                "description": "The server is draining, or the stream log is unavailable.",
                "content": json_content("Status"),
            },
        },
    },
}
"""By endpoint: the parameters, the body, the responses and the errors."""
