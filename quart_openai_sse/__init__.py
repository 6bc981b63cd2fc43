"""Streaming AI for the Quart app you already have."""

from quart_openai_sse.auth.forward import forward_auth
from quart_openai_sse.auth.hooks import (
    Authenticate,
    Principal,
    allow_anonymous,
    bearer_tokens,
    first_of,
    on_behalf_of,
    quart_auth_user,
    session_user,
)
from quart_openai_sse.config import Config, UpstreamConfig
from quart_openai_sse.errors import OpenAISSEError
from quart_openai_sse.extension import QuartOpenAISSE
from quart_openai_sse.flask.sessions import share_session
from quart_openai_sse.formats import Format
from quart_openai_sse.logs import Reader, StreamLog, Writer
from quart_openai_sse.logs.entries import END_ID, Batch, End, Entry
from quart_openai_sse.observers import Observer, StreamEvent, StreamRecord
from quart_openai_sse.producers.app_model import Chat, Event
from quart_openai_sse.producers.calls import Call
from quart_openai_sse.producers.transforms import Transform
from quart_openai_sse.protocol.sse import ServerSentEvent, SSEDecoder, encode
from quart_openai_sse.protocol.trace_context import TraceIdFilter, current_trace_id
from quart_openai_sse.relay.hooks import StreamEnd
from quart_openai_sse.upstreams import Sink, Upstream
from quart_openai_sse.upstreams.openai import OpenAIUpstream
from quart_openai_sse.web.blueprint import EXPOSED_HEADERS
from quart_openai_sse.web.stream import Stream, StreamItem

__all__ = [
    "END_ID",
    "EXPOSED_HEADERS",
    "Authenticate",
    "Batch",
    "Call",
    "Chat",
    "Config",
    "End",
    "Entry",
    "Event",
    "Format",
    "Observer",
    "OpenAISSEError",
    "OpenAIUpstream",
    "Principal",
    "QuartOpenAISSE",
    "Reader",
    "SSEDecoder",
    "ServerSentEvent",
    "Sink",
    "Stream",
    "StreamEnd",
    "StreamEvent",
    "StreamItem",
    "StreamLog",
    "StreamRecord",
    "TraceIdFilter",
    "Transform",
    "Upstream",
    "UpstreamConfig",
    "Writer",
    "allow_anonymous",
    "bearer_tokens",
    "current_trace_id",
    "encode",
    "first_of",
    "forward_auth",
    "on_behalf_of",
    "quart_auth_user",
    "session_user",
    "share_session",
]
