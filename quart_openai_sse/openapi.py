"""The routes as an OpenAPI document: made of the table of routes, the views' docstrings and the tree of errors."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from quart_openai_sse.blueprint import ROUTES, view_summary
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
from quart_openai_sse.formats.registry import FORMATS
from quart_openai_sse.logs.entries import RESERVED_EVENTS
from quart_openai_sse.protocol.requests import ROLES
from quart_openai_sse.responses import STREAM_HEADERS

__all__ = ["openapi_document"]

Schema = dict[str, Any]
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
        "components": {
            "securitySchemes": _SECURITY,
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
            "schemas": {**_SCHEMAS, "ErrorCode": _error_code()},
        },
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
        "parameters": [_ref("parameters", name) for name in parameters],
        **details,
        "responses": {**{status: _answer(answer) for status, answer in answers.items()}, **_refusals(errors)},
    }


def _answer(answer: Schema) -> Schema:
    headers = {name: _ref("headers", name) for name in (*answer.get("headers", ()), "x-request-id")}
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
    content = {"application/json": {"schema": _ref("schemas", "Error")}}
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


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _json(schema: str) -> Schema:
    return {"application/json": {"schema": _ref("schemas", schema)}}


def _events(*schemas: str) -> Schema:
    """A stream of events; the schema is that of each of them, as long as OpenAPI 3.1 has no better place for it."""
    return {"text/event-stream": {"schema": {"anyOf": [_ref("schemas", name) for name in schemas]}}}


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


def _parameter(name: str, where: str, description: str, **schema: Any) -> Schema:
    found = {"name": name, "in": where, "description": description, "schema": {"type": "string", **schema}}
    return {**found, "required": True} if where == "path" else found


def _header(description: str, **schema: Any) -> Schema:
    return {"description": description, "schema": {"type": "string", **schema}}


def _object(required: Collection[str] = (), /, **properties: Schema) -> Schema:
    return {"type": "object", **({"required": list(required)} if required else {}), "properties": properties}


def _nullable(kind: str, **schema: Any) -> Schema:
    """`null` counts as left out, as in OpenAI's API."""
    return {"type": [kind, "null"], **schema}


def _list_of(schema: str) -> Schema:
    return _object(
        ("object", "data"), object={"const": "list"}, data={"type": "array", "items": _ref("schemas", schema)}
    )


def _event(data: Schema, **members: Schema) -> Schema:
    """A server-sent event."""
    return _object(("data",), **members, data={"type": "string", **data})


def _json_of(schema: str) -> Schema:
    return {"contentMediaType": "application/json", "contentSchema": _ref("schemas", schema)}


_TEXT: Schema = {"type": "string"}
_OBJECTS: Schema = {"type": "array", "items": {"type": "object"}}

_SECURITY: Schema = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token, where the app's auth hook knows tokens.",
    },
    "cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": "session",
        "description": "The app's login, where its hook knows it. Pages of other origins can't change anything by it.",
    },
}

_PARAMETERS: Schema = {
    "Idempotency-Key": _parameter(
        "Idempotency-Key",
        "header",
        "Whoever sends the same body with the same key gets the same stream; empty is none. Not for anonymous callers.",
        pattern="^[!-~]{0,255}$",
    ),
    "stream_id": _parameter("stream_id", "path", "The stream's id.", pattern="^[0-9a-f]{32}$"),
    "Last-Event-ID": _parameter("Last-Event-ID", "header", "The last event you have, as EventSource says it."),
    "last_event_id": _parameter("last_event_id", "query", "The same, for who can't set headers."),
    "format": _parameter("format", "query", "How events are written.", enum=sorted(FORMATS), default="text"),
    "thread": _parameter("thread", "query", "Only the streams of this thread."),
    "traceparent": _parameter("traceparent", "header", "A W3C trace context; its trace id is used if it is valid."),
    "X-Trace-ID": _parameter("X-Trace-ID", "header", "A trace id of up to 64 letters, digits, dots, dashes and `_`."),
    "Accept-Language": _parameter("Accept-Language", "header", "In which language `user_message` is wanted."),
}

_HEADERS: Schema = {
    "x-request-id": _header("The trace id of the log.", pattern="^[A-Za-z0-9._-]{1,64}$"),
    "X-Stream-Id": _header("The stream's id.", pattern="^[0-9a-f]{32}$"),
    "Location": _header("The stream's address."),
    "Retry-After": _header("Seconds after which trying again makes sense.", pattern="^[0-9]+$"),
    "x-should-retry": _header("Whether OpenAI's SDKs try again; else the status says.", enum=["true", "false"]),
    "WWW-Authenticate": _header("How to authenticate.", const="Bearer"),
    "Cache-Control": _header("Not to be kept, nor compressed.", const="no-cache, no-transform"),
    "X-Accel-Buffering": _header("Not to be held back by nginx.", const="no"),
    "Incremental": _header("To be passed on as it arrives (RFC 10036).", const="?1"),
}

_CHAT_REQUEST = _object(
    ("messages",),
    model=_nullable(
        "string",
        minLength=1,
        maxLength=256,
        description="Printable characters, not only spaces. Left out: the model that the app has configured.",
    ),
    messages={
        "type": "array",
        "minItems": 1,
        "items": _object(("role",), role={"type": "string", "enum": sorted(ROLES)}),
    },
    stream=_nullable("boolean"),
    stream_options=_nullable("object", properties={"include_usage": _nullable("boolean")}),
    temperature=_nullable("number", minimum=0, maximum=2),
    top_p=_nullable("number", minimum=0, maximum=1),
    presence_penalty=_nullable("number", minimum=-2, maximum=2),
    frequency_penalty=_nullable("number", minimum=-2, maximum=2),
    n=_nullable("integer", minimum=1, maximum=128),
    max_tokens=_nullable("integer", minimum=1),
    max_completion_tokens=_nullable("integer", minimum=1),
    logprobs=_nullable("boolean"),
    top_logprobs=_nullable("integer", minimum=0, maximum=20),
    seed=_nullable("integer"),
    stop={"type": ["string", "array", "null"], "items": _TEXT},
    tools={**_OBJECTS, "type": ["array", "null"]},
    tool_choice={"type": ["string", "object", "null"]},
    parallel_tool_calls=_nullable("boolean"),
    response_format=_nullable("object"),
    logit_bias=_nullable("object"),
    user=_nullable("string"),
)

_SCHEMAS: Schema = {
    "ChatRequest": {**_CHAT_REQUEST, "description": "OpenAI's; members that are not listed pass untouched."},
    "StreamRequest": {
        **_CHAT_REQUEST,
        "properties": {
            **_CHAT_REQUEST["properties"],
            "thread": _nullable(
                "string",
                pattern="^[^\\u0000-\\u001f\\u007f]{1,255}$",
                description="By what the stream can be found, while it runs.",
            ),
        },
    },
    "ChatCompletion": {
        **_object(("choices",), choices=_OBJECTS, usage=_nullable("object")),
        "description": "OpenAI's `chat.completion`, as the upstream sent it.",
    },
    "ChatCompletionChunk": {
        **_object(("choices",), choices=_OBJECTS, usage=_nullable("object")),
        "description": "OpenAI's `chat.completion.chunk`, as the upstream sent it.",
    },
    "OpenAIEvent": {
        "description": "A chunk; at the end `[DONE]`, or an error if the stream is not complete.",
        "anyOf": [
            _event({"const": "[DONE]"}),
            _event(_json_of("Error")),
            _event(_json_of("ChatCompletionChunk")),
        ],
    },
    "TextEvent": {
        "description": "A piece of text or an event of the app's; at the end `completed`, `failed` or `stopped`.",
        "anyOf": [
            _event(_json_of("TextDelta"), event={"const": "delta"}),
            _event(_json_of("Completed"), event={"const": "completed"}),
            _event(_json_of("Error"), event={"const": "failed"}),
            _event(_json_of("Stopped"), event={"const": "stopped"}),
            _event({"contentMediaType": "application/json"}, event={"not": {"enum": sorted(RESERVED_EVENTS)}}),
        ],
    },
    "TextDelta": _object(
        ("text", "t"),
        text={**_TEXT, "description": "A piece of the first choice's content or refusal."},
        t={"type": "number", "description": "Seconds since the stream began."},
    ),
    "Completed": _object(("finish_reason", "usage"), finish_reason=_nullable("string"), usage=_nullable("object")),
    "Stopped": _object(("reason",), reason=_TEXT),
    "Models": _list_of("Model"),
    "Model": _object(("id",), id=_TEXT, object={"const": "model"}, created={"type": "integer"}, owned_by=_TEXT),
    "StreamAddress": _object(("id", "url"), id={**_TEXT, "pattern": "^[0-9a-f]{32}$"}, url=_TEXT),
    "Streams": _list_of("Stream"),
    "Stream": _object(
        ("id", "object", "url", "thread", "model", "created"),
        id={**_TEXT, "pattern": "^[0-9a-f]{32}$"},
        object={"const": "stream"},
        url=_TEXT,
        thread={**_TEXT, "description": 'Or "", if it has none.'},
        model=_TEXT,
        created={"type": "integer", "description": "Unix time."},
    ),
    "Status": _object(("status",), status={"enum": ["ok", "ready", "draining"]}),
    "Error": _object(
        ("error",),
        error=_object(
            ("message", "type", "param", "code", "user_message"),
            message={**_TEXT, "description": "For developers."},
            type=_TEXT,
            param=_nullable("string", description="The member of the request that is wrong."),
            code=_ref("schemas", "ErrorCode"),
            user_message={**_TEXT, "description": "A sentence that can be shown to a person."},
        ),
    ),
}
