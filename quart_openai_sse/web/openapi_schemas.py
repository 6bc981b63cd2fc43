"""The components of the OpenAPI document: security schemes, parameters, headers and schemas."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from quart_openai_sse.formats.registry import FORMATS
from quart_openai_sse.logs.entries import RESERVED_EVENTS
from quart_openai_sse.protocol.members import MEMBERS, RANGES, ROLE_LENGTH, ROLES, Schema
from quart_openai_sse.protocol.requests import KEY_PATTERN, MODEL_LENGTH, STREAM_ID_PATTERN, THREAD_PATTERN
from quart_openai_sse.protocol.trace_context import TRACE_ID


def ref(kind: str, name: str) -> Schema:
    """A reference to the component *name*, where *kind* is "parameters", "headers" or "schemas"."""
    return {"$ref": f"#/components/{kind}/{name}"}


def _parameter(name: str, where: str, description: str, **schema: Any) -> Schema:
    found = {"name": name, "in": where, "description": description, "schema": {"type": "string", **schema}}
    return {**found, "required": True} if where == "path" else found


def _header(description: str, **schema: Any) -> Schema:
    return {"description": description, "schema": {"type": "string", **schema}}


def _object(required: Collection[str] = (), /, **properties: Schema) -> Schema:
    return {"type": "object", **({"required": list(required)} if required else {}), "properties": properties}


def _nullable(kind: str, **schema: Any) -> Schema:
    return {"type": [kind, "null"], **schema}


def _list_of(schema: str) -> Schema:
    return _object(
        ("object", "data"), object={"const": "list"}, data={"type": "array", "items": ref("schemas", schema)}
    )


def _event(data: Schema, **members: Schema) -> Schema:
    """The schema of a server-sent event whose data matches *data*."""
    return _object(("data",), **members, data={"type": "string", **data})


def _json_of(schema: str) -> Schema:
    return {"contentMediaType": "application/json", "contentSchema": ref("schemas", schema)}


_TEXT: Schema = {"type": "string"}
_OBJECTS: Schema = {"type": "array", "items": {"type": "object"}}

SECURITY: Schema = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token, if the app's auth hook accepts tokens.",
    },
    "cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": "session",
        "description": "The app's login, if its auth hook accepts it, but not for changes by a page of another origin.",
    },
}

PARAMETERS: Schema = {
    "Idempotency-Key": _parameter(
        "Idempotency-Key",
        "header",
        "Requests with the same key and body get the same stream. Empty: no key. Not for anonymous callers.",
        pattern=KEY_PATTERN,
    ),
    "model": _parameter("model", "path", "The model's id, which may contain slashes.", minLength=1),
    "stream_id": _parameter("stream_id", "path", "The stream's id.", pattern=STREAM_ID_PATTERN),
    "Last-Event-ID": _parameter("Last-Event-ID", "header", "The id of the last event received."),
    "last_event_id": _parameter("last_event_id", "query", "The same, for a client that cannot set headers."),
    "format": _parameter("format", "query", "The format of the events.", enum=sorted(FORMATS), default="text"),
    "thread": _parameter("thread", "query", "Only the streams of this thread."),
    "erase": _parameter("erase", "query", "Whether to remove the stream as well.", enum=["0", "1"], default="0"),
    "traceparent": _parameter("traceparent", "header", "A W3C trace context; its trace id is used if it is valid."),
    "X-Trace-ID": _parameter("X-Trace-ID", "header", "A trace id of up to 64 letters, digits, dots, dashes and `_`."),
    "Accept-Language": _parameter("Accept-Language", "header", "The language of `user_message`."),
}

HEADERS: Schema = {
    "x-request-id": _header("The trace id, as in the log.", pattern=f"^{TRACE_ID}$"),
    "X-Stream-Id": _header("The stream's id.", pattern=STREAM_ID_PATTERN),
    "Location": _header("The stream's address."),
    "Retry-After": _header("Seconds to wait before a retry.", pattern="^[0-9]+$"),
    "x-should-retry": _header("Whether OpenAI's SDKs retry; without it the status decides.", enum=["true", "false"]),
    "WWW-Authenticate": _header("How to authenticate.", const="Bearer"),
    "Cache-Control": _header("Proxies must not cache or compress the stream.", const="no-cache, no-transform"),
    "X-Accel-Buffering": _header("nginx must not buffer the stream.", const="no"),
    "Incremental": _header("Proxies must forward the stream as it arrives (RFC 10036).", const="?1"),
}

_IN_FRONT_OF_OPENAI = "In front of OpenAI's own API only:"
"""Its ranges are no part of the schemas, because the document is the same in front of every server."""


def _range(name: str) -> Schema:
    """The description of a member's range, if OpenAI's API limits it."""
    if name not in RANGES:
        return {}
    low, high = RANGES[name]["minimum"], RANGES[name].get("maximum")
    words = f"at least {low}" if high is None else f"from {low} to {high}"
    return {"description": f"{_IN_FRONT_OF_OPENAI} {words}."}


_CHAT_REQUEST = _object(
    ("messages",),
    model=_nullable(
        "string",
        minLength=1,
        maxLength=MODEL_LENGTH,
        description="Printable characters, not only spaces. By default, the model that the app has configured.",
    ),
    messages={
        "type": "array",
        "minItems": 1,
        "items": _object(
            ("role",),
            role={
                "type": "string",
                "minLength": 1,
                "maxLength": ROLE_LENGTH,
                "description": f"Printable characters, not only spaces. {_IN_FRONT_OF_OPENAI} one of "
                f"{', '.join(sorted(ROLES))}.",
            },
        ),
    },
    **{name: {**schema, **_range(name)} for name, schema in MEMBERS.items()},
)

SCHEMAS: Schema = {
    "ChatRequest": {
        **_CHAT_REQUEST,
        "description": "OpenAI's. Members that are not listed are sent upstream unchanged, except those that the app "
        "refuses with 400: by default those by which a gateway would send the request to another server or with other "
        "credentials (`api_base`, `api_key`, `extra_headers` and others).",
    },
    "StreamRequest": {
        **_CHAT_REQUEST,
        "properties": {
            **_CHAT_REQUEST["properties"],
            "thread": _nullable(
                "string",
                pattern=THREAD_PATTERN,
                description="A name by which the running stream can be found.",
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
        "description": "A chunk. The last event is `[DONE]`, or an error if the stream is not complete.",
        "anyOf": [
            _event({"const": "[DONE]"}),
            _event(_json_of("Error")),
            _event(_json_of("ChatCompletionChunk")),
        ],
    },
    "TextEvent": {
        "description": "A piece of text or an app event. The last event is `completed`, `failed` or `stopped`.",
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
    "StreamAddress": _object(("id", "url"), id={**_TEXT, "pattern": STREAM_ID_PATTERN}, url=_TEXT),
    "Streams": _list_of("Stream"),
    "Stream": _object(
        ("id", "object", "url", "thread", "model", "created"),
        id={**_TEXT, "pattern": STREAM_ID_PATTERN},
        object={"const": "stream"},
        url=_TEXT,
        thread={**_TEXT, "description": 'The thread\'s name, or "".'},
        model=_TEXT,
        created={"type": "integer", "description": "Unix time."},
    ),
    "Status": _object(("status",), status={"enum": ["ok", "ready", "draining", "log unavailable"]}),
    "Error": _object(
        ("error",),
        error=_object(
            ("message", "type", "param", "code", "user_message"),
            message={**_TEXT, "description": "For developers."},
            type=_TEXT,
            param=_nullable("string", description="The member of the request that is invalid."),
            code=ref("schemas", "ErrorCode"),
            user_message={**_TEXT, "description": "A sentence that can be shown to a person."},
        ),
    ),
}
