"""Streaming AI for the Quart app you already have.

The names here are what most apps need: the extension and its configuration, the auth hooks of common logins, and
what the app's own routes, models and hooks are given. Everything else is imported from its module, as
docs/reference/api.md lists it: errors from `quart_openai_sse.errors`, the stream log from `quart_openai_sse.logs`.
"""

from quart_openai_sse.auth import allow_anonymous, bearer_tokens, first_of, quart_auth_user, session_user
from quart_openai_sse.config import Config, UpstreamConfig
from quart_openai_sse.errors import OpenAISSEError
from quart_openai_sse.extension import QuartOpenAISSE
from quart_openai_sse.observers import StreamEvent, StreamRecord
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers.calls import Call
from quart_openai_sse.producers.chat import Chat, Event
from quart_openai_sse.producers.items import finish
from quart_openai_sse.protocol.texts import places_of, text_of, with_text
from quart_openai_sse.protocol.trace_context import current_trace_id
from quart_openai_sse.relay.hooks import StreamEnd
from quart_openai_sse.web.blueprint import EXPOSED_HEADERS
from quart_openai_sse.web.stream import Stream, StreamItem

__all__ = [
    "EXPOSED_HEADERS",
    "Call",
    "Chat",
    "Config",
    "Event",
    "OpenAISSEError",
    "Principal",
    "QuartOpenAISSE",
    "Stream",
    "StreamEnd",
    "StreamEvent",
    "StreamItem",
    "StreamRecord",
    "UpstreamConfig",
    "allow_anonymous",
    "bearer_tokens",
    "current_trace_id",
    "finish",
    "first_of",
    "places_of",
    "quart_auth_user",
    "session_user",
    "text_of",
    "with_text",
]
