"""The parameters, headers and schemas of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from quart_openai_sse.formats.registry import FORMATS
from quart_openai_sse.logs.entries import RESERVED_EVENTS
from quart_openai_sse.protocol.requests import KEY_PATTERN, MEMBERS, MODEL_LENGTH, ROLES, THREAD_PATTERN, Schema


def ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


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
        ("object", "data"), object={"const": "list"}, data={"type": "array", "items": ref("schemas", schema)}
    )


def _event(data: Schema, **members: Schema) -> Schema:
    """A server-sent event."""
    return _object(("data",), **members, data={"type": "string", **data})


def _json_of(schema: str) -> Schema:
    return {"contentMediaType": "application/json", "contentSchema": ref("schemas", schema)}


_TEXT: Schema = {"type": "string"}


_OBJECTS: Schema = {"type": "array", "items": {"type": "object"}}


SECURITY: Schema = {
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


PARAMETERS: Schema = {
    "Idempotency-Key": _parameter(
        "Idempotency-Key",
        "header",
        "Whoever sends the same body with the same key gets the same stream; empty is none. Not for anonymous callers.",
        pattern=KEY_PATTERN,
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


HEADERS: Schema = {
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
        maxLength=MODEL_LENGTH,
        description="Printable characters, not only spaces. Left out: the model that the app has configured.",
    ),
    messages={
        "type": "array",
        "minItems": 1,
        "items": _object(("role",), role={"type": "string", "enum": sorted(ROLES)}),
    },
    **MEMBERS,
)


SCHEMAS: Schema = {
    "ChatRequest": {**_CHAT_REQUEST, "description": "OpenAI's; members that are not listed pass untouched."},
    "StreamRequest": {
        **_CHAT_REQUEST,
        "properties": {
            **_CHAT_REQUEST["properties"],
            "thread": _nullable(
                "string",
                pattern=THREAD_PATTERN,
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
            code=ref("schemas", "ErrorCode"),
            user_message={**_TEXT, "description": "A sentence that can be shown to a person."},
        ),
    ),
}
