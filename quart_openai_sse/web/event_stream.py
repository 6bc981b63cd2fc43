"""The response that streams: its headers, its heartbeats, its last event."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, cast

from quart import Response, request

from quart_openai_sse.errors import ErrorValue, OpenAISSEError
from quart_openai_sse.formats import Format
from quart_openai_sse.logs import Reader
from quart_openai_sse.logs.entries import END_ID, LOST, End
from quart_openai_sse.protocol.sse import HEARTBEAT
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.running import StreamHandle
from quart_openai_sse.web.writes import WriteWatch

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
    reader = handle.reader or await relay.read(handle, after=after)
    try:
        # If the client disconnects before the body begins, the body's `finally` never runs, but the request's task
        # ends. (It may be another than the current task: a view may create its response in a task of its own.)
        task = _request_task.get() or cast("asyncio.Task[Any]", asyncio.current_task())
        task.add_done_callback(lambda _: relay.leave_soon(reader))
        if late:
            await reader.opened(relay.config.commit_after)
    except BaseException:
        await relay.readers.leave(reader)
        raise
    retry = b"retry: %d\n" % relay.config.retry if ids else b""
    watch = WriteWatch(task, relay.config.write_timeout)
    response = Response(
        _body(relay, reader, format_, watch, ids=ids, retry=retry),
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
    reader = await relay.read(handle, after="" if format_.replays and after != END_ID else after)
    if reader.at_end or request.method == "HEAD":
        await relay.readers.leave(reader)
        if reader.at_end:
            return Response(status=204, mimetype="text/event-stream")
        return Response(content_type=_EVENT_STREAM, headers={**STREAM_HEADERS, "X-Stream-Id": handle.id})
    handle = replace(handle, reader=reader)
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
    watch: WriteWatch,
    *,
    ids: bool,
    retry: bytes,
) -> AsyncGenerator[bytes, None]:
    keepalive = relay.config.keepalive or math.inf
    memory = relay.memory
    shown = 0.0  # when the last entry came that produced output for the client
    size = 0
    try:
        if retry:
            yield retry
        async for batch in reader:
            entries, end = batch.entries, batch.end
            data = format_.encode(batch, ids=ids) if entries else b""
            if end is not None:
                data += format_.end(end, ids=ids)
            elif data:
                shown = entries[-1].t
            elif not entries or entries[-1].t - shown >= keepalive:  # silence, or nothing to send in this format
                shown = entries[-1].t if entries else shown
                data = HEARTBEAT
            else:
                continue
            del batch, entries  # a slow client holds their bytes once, and not twice
            size = len(data)
            memory.unread += size
            watch.writes += 1
            yield data
            watch.writes += 1
            memory.unread -= size
            size = 0
            if end is not None:
                return
        yield format_.end(LOST, ids=ids)
    except Exception:
        # Quart does not pass on an exception of the body: the stream would look complete.
        logger.exception("a response failed")
        yield format_.end(End("failed", "internal_error", ErrorValue.of(OpenAISSEError())), ids=ids)
    finally:
        memory.unread -= size
        watch.stop()
        await relay.readers.leave(reader)
