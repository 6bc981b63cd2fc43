"""The response that streams: its headers, its heartbeats, its last event."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Sequence
from contextvars import ContextVar
from typing import Any

from quart import Response, request

from quart_openai_sse.errors import OpenAISSEError
from quart_openai_sse.formats import Format
from quart_openai_sse.logs import Reader
from quart_openai_sse.logs.entries import END_ID, End, Entry
from quart_openai_sse.protocol.sse import HEARTBEAT
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.running import StreamHandle

logger = logging.getLogger("quart_openai_sse")

_request_task: ContextVar[asyncio.Task[Any] | None] = ContextVar("quart_openai_sse_request_task", default=None)

STREAM_HEADERS = {
    # no-transform: a proxy that compresses holds events back. X-Accel-Buffering: so does nginx.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    # RFC 10036: the same for all proxies that support it; a boolean of RFC 9651.
    "Incremental": "?1",
}
"""The headers of every event stream."""

_EVENT_STREAM = "text/event-stream; charset=utf-8"


async def stream_response(
    relay: Relay,
    handle: StreamHandle,
    format_: Format,
    *,
    after: str = "",
    ids: bool,
    late: bool = True,
) -> Response:
    """A response that streams *handle* in *format_* from behind the event *after*, with `id` fields if *ids*.

    If *late*, it waits for the first output, at most `commit_after` seconds, and raises the error of a stream that
    fails before it. Raises what `StreamLog.read` raises.
    """
    after = "" if format_.replays else after
    reader = handle.reader or await relay.read(handle.key, after=after)
    try:
        # If the client disconnects before the body begins, the body's `finally` never runs, but the request's task
        # ends. (It may be another than the current task: a view may create its response in a task of its own.)
        task = _request_task.get() or asyncio.current_task()
        if task is not None:
            task.add_done_callback(lambda _: relay.leave_soon(reader))
        if late:
            await reader.opened(relay.config.commit_after)
    except BaseException:
        await relay.leave(reader)
        raise
    retry = b"retry: %d\n" % relay.config.retry if ids else b""
    response = Response(
        _body(relay, reader, format_, ids=ids, retry=retry),
        content_type=_EVENT_STREAM,
        headers={**STREAM_HEADERS, "X-Stream-Id": handle.id},
    )
    response.timeout = None  # otherwise Quart would cut the stream at RESPONSE_TIMEOUT, without an error
    return response


async def resumed_response(relay: Relay, handle: StreamHandle, format_: Format, *, after: str, late: bool) -> Response:
    """A response to a request that resumes a stream from behind the event *after*, with `id` fields.

    It is an empty 204 if the client has the end already, which keeps an EventSource from reconnecting, and the headers
    alone for HEAD. Otherwise see `stream_response`.
    """
    reader = await relay.read(handle.key, after="" if format_.replays and after != END_ID else after)
    if reader.at_end or request.method == "HEAD":
        await relay.leave(reader)
        if reader.at_end:
            return Response(status=204, mimetype="text/event-stream")
        return Response(content_type=_EVENT_STREAM, headers={**STREAM_HEADERS, "X-Stream-Id": handle.id})
    handle = StreamHandle(handle.id, handle.key, reader=reader)
    return await stream_response(relay, handle, format_, ids=True, late=late)


def last_event_id() -> str:
    """The last event ID of the current request, or ""."""
    # EventSource sends the header by itself, but only when it reconnects.
    return request.headers.get("Last-Event-ID") or request.args.get("last_event_id", "")


async def remember_request_task() -> None:
    """Remembers the current request's task, which ends after the response's body. For `before_request`."""
    _request_task.set(asyncio.current_task())


async def _body(
    relay: Relay,
    reader: Reader,
    format_: Format,
    *,
    ids: bool,
    retry: bytes,
) -> AsyncGenerator[bytes, None]:
    keepalive = relay.config.keepalive or math.inf
    shown: Sequence[Entry] = (Entry(b""),)  # the last entries that produced output for the client
    try:
        if retry:
            yield retry
        async for batch in reader:
            entries = batch.entries
            data = format_.encode(batch, ids=ids) if entries else b""
            if batch.end is not None:
                yield data + format_.end(batch.end, ids=ids)
            elif data:
                shown = entries
                yield data
            elif not entries or entries[-1].t - shown[-1].t >= keepalive:  # silence, or nothing to send in this format
                shown = entries or shown
                yield HEARTBEAT
    except Exception:
        # Quart does not pass on an exception of the body: the stream would look complete.
        logger.exception("a response failed")
        yield format_.end(End("failed", "internal_error", OpenAISSEError()), ids=ids)
    finally:
        await relay.leave(reader)
