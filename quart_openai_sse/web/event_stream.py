"""The response that streams: its headers, its heartbeats, its last event."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Hashable
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

from quart import Response, request

from quart_openai_sse.errors import ErrorValue, OpenAISSEError
from quart_openai_sse.formats import Format
from quart_openai_sse.formats.registry import Wire
from quart_openai_sse.logs import Reader
from quart_openai_sse.logs.entries import END_ID, LOST, Batch, End
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.running import StreamHandle
from quart_openai_sse.web.writes import WriteWatch

logger = logging.getLogger("quart_openai_sse")

# Until a write is accepted, hypercorn holds it twice, and after a response is cut off as long as the client stays.
_MOST_WRITE = 64 << 10  # bytes
_SMALL = 4 << 10  # bytes; less is not counted as unread
_LOST = Batch(0, (), LOST)

_request_task: ContextVar[asyncio.Task[Any] | None] = ContextVar("quart_openai_sse_request_task", default=None)

STREAM_HEADERS = {
    # no-transform: a proxy that compresses holds events back. X-Accel-Buffering: so does nginx.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    # RFC 10036: the same for all proxies that support it; a boolean of RFC 9651.
    "Incremental": "?1",
}
"""The headers of every response that streams; a format can replace them."""

_FRAMING = ("Content-Length", "Transfer-Encoding")  # the server's: with a length, a cut response would look complete


async def stream_response(relay: Relay, handle: StreamHandle, wire: Wire) -> Response:
    """A response that streams *handle* in the format *wire*, from the beginning.

    It waits for the first output, at most `commit_after` seconds, and raises the error of a stream that fails before
    it. Raises what `StreamLog.read` raises.
    """
    reader = handle.reader or await relay.read(handle)
    return await _respond(relay, handle, reader, wire, after="", late=True)


async def resumed_response(relay: Relay, handle: StreamHandle, wire: Wire, *, after: str, late: bool) -> Response:
    """A response to a request that resumes a stream from the client's position *after*.

    It is an empty 204 if the client has the end already, which keeps an EventSource from reconnecting, and the headers
    alone for HEAD. It waits for the first output only if *late*. Otherwise see `stream_response`.
    """
    reader = await relay.read(handle, after="" if wire.without_stream.replays and after != END_ID else after)
    if reader.at_end:
        await relay.readers.leave(reader)
        return Response(status=204, content_type=wire.content_type)
    if request.method == "HEAD":
        await relay.readers.leave(reader)
        return Response(headers=_headers(handle, wire.format(reader.about, after=after)))
    return await _respond(relay, handle, reader, wire, after=after, late=late)


async def _respond(
    relay: Relay, handle: StreamHandle, reader: Reader, wire: Wire, *, after: str, late: bool
) -> Response:
    try:
        format_ = wire.format(reader.about, after=after)
        # If the client disconnects before the body begins, the body's `finally` never runs, but the request's task
        # ends. (It may be another than the current task: a view may create its response in a task of its own.)
        task = _request_task.get() or cast("asyncio.Task[Any]", asyncio.current_task())
        task.add_done_callback(partial(relay.leave_soon, reader))
        if late:
            await reader.opened(relay.config.commit_after)
        headers = _headers(handle, format_)
    except BaseException:
        await relay.readers.leave(reader)
        raise
    watch = WriteWatch(task, relay.config.write_timeout)
    response = Response(_body(relay, reader, format_, watch), headers=headers)
    response.timeout = None  # otherwise Quart would cut the stream at RESPONSE_TIMEOUT, without an error
    return response


def _headers(handle: StreamHandle, format_: Format) -> dict[str, str]:
    headers = dict(STREAM_HEADERS)
    for name, value in format_.headers.items():
        name = name.title()
        if name not in _FRAMING:
            headers[name] = value
    headers["X-Stream-Id"] = handle.id
    return headers


def last_event_id() -> str:
    """The last event ID of the current request, or ""."""
    # EventSource sends the header by itself, but only when it reconnects.
    return request.headers.get("Last-Event-ID") or request.args.get("last_event_id", "")


async def remember_request_task() -> None:
    """Remembers the current request's task, which ends after the response's body. For `before_request`."""
    _request_task.set(asyncio.current_task())


# One loop: each further call would cost something with each event.
async def _body(  # noqa: C901
    relay: Relay, reader: Reader, format_: Format, watch: WriteWatch
) -> AsyncGenerator[bytes, None]:
    keepalive = relay.config.keepalive or math.inf
    memory = relay.memory
    encode = format_.encode
    shown = 0.0  # when the last entry came that produced output for the client
    size = 0
    end: End | None = None
    try:
        data = format_.head()
        while True:
            if len(data) > _SMALL:
                size = len(data)
                memory.unread += size
                for start in range(0, size, _MOST_WRITE):
                    watch.writes += 1
                    yield data[start : start + _MOST_WRITE]
                    watch.writes += 1
                memory.unread -= size
                size = 0
            elif data:
                watch.writes += 1
                yield data
                watch.writes += 1
            if end is not None:
                return
            try:
                batch = await reader.__anext__()
            except StopAsyncIteration:
                batch = _LOST
            entries, end = batch.entries, batch.end
            if batch.encoded is None or format_.sharing is None:
                data = encode(batch) if entries else b""
            else:
                data = _encode_once(batch, batch.encoded, format_)
            if end is not None:
                data += format_.end(end)
            elif data:
                shown = entries[-1].t
            elif not entries or entries[-1].t - shown >= keepalive:  # silence, or nothing to send in this format
                shown = entries[-1].t if entries else shown
                data = format_.heartbeat
            del batch, entries  # a slow client holds their bytes once, and not twice
    except Exception as raised:
        # The client is to be told: a server may end a response whose body raises as if it were complete.
        logger.exception("a response failed")
        error = raised if isinstance(raised, OpenAISSEError) else OpenAISSEError()
        watch.writes += 1
        yield format_.end(End("failed", error.code or "", ErrorValue.of(error)))
        watch.writes += 1
    finally:
        memory.unread -= size
        watch.stop()
        await relay.readers.leave(reader)


def _encode_once(batch: Batch, encoded: dict[Hashable, bytes], format_: Format) -> bytes:
    """The bytes of a batch that is given to several readers: the first one of them encodes it."""
    sharing = (type(format_), format_.sharing)
    data = encoded.get(sharing)
    if data is None:
        data = format_.encode(batch)
        if format_.sharing is not None:  # what this response sends may have become its own
            encoded[sharing] = data
    return data
