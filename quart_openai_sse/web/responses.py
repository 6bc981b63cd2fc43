"""From the log to Quart: a stream as the app holds it, its reader as a response, an error as a response."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Sequence
from contextvars import ContextVar
from typing import Any

from quart import Response

from quart_openai_sse.errors import OpenAISSEError, StreamTooLong
from quart_openai_sse.formats import Format, end_error
from quart_openai_sse.logs import Reader
from quart_openai_sse.logs.entries import End, Entry
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.protocol.chunks import whole_answer
from quart_openai_sse.protocol.sse import HEARTBEAT
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.running import StreamHandle
from quart_openai_sse.web.language import translator

logger = logging.getLogger("quart_openai_sse")

_request_task: ContextVar[asyncio.Task[Any] | None] = ContextVar("quart_openai_sse_request_task", default=None)


STREAM_HEADERS = {
    # no-transform: a proxy that compresses holds events back. X-Accel-Buffering: nginx would too.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    # RFC 10036: the same for every proxy that knows it. A boolean of RFC 9651.
    "Incremental": "?1",
}
"""The headers that every event stream has."""


async def remember_request_task() -> None:
    """Before a request: its task outlives its response's body."""
    _request_task.set(asyncio.current_task())


async def stream_response(
    relay: Relay,
    handle: StreamHandle,
    spoken: Format,
    *,
    after: str = "",
    ids: bool,
    late: bool = True,
) -> Response:
    """The stream as a response. *late*: not before its first output, so that a failure can be raised until then."""
    after = "" if spoken.replays else after
    reader = handle.reader or await relay.read(handle.key, after=after)
    try:
        # If the client leaves before the body begins, the body's `finally` never runs; its task always ends.
        # (A view may make its response in a task of its own, which ends long before.)
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
        _body(relay, reader, spoken, ids=ids, retry=retry),
        content_type="text/event-stream; charset=utf-8",
        headers={**STREAM_HEADERS, "X-Stream-Id": handle.id},
    )
    response.timeout = None  # Quart would cut the stream at RESPONSE_TIMEOUT, silently
    return response


async def _body(
    relay: Relay,
    reader: Reader,
    spoken: Format,
    *,
    ids: bool,
    retry: bytes,
) -> AsyncGenerator[bytes, None]:
    keepalive = relay.config.keepalive or math.inf
    shown: Sequence[Entry] = (Entry(b""),)  # the latest that was said anything of
    try:
        if retry:
            yield retry
        async for batch in reader:
            entries = batch.entries
            data = spoken.encode(batch, ids=ids) if entries else b""
            if batch.end is not None:
                yield data + spoken.end(batch.end, ids=ids)
            elif data:
                shown = entries
                yield data
            elif not entries or entries[-1].t - shown[-1].t >= keepalive:  # silence, or nothing that this format shows
                shown = entries or shown
                yield HEARTBEAT
    except Exception:
        # Quart swallows what a body raises, and the stream would look complete.
        logger.exception("a response failed")
        yield spoken.end(End("failed", "internal_error", OpenAISSEError()), ids=ids)
    finally:
        await relay.leave(reader)


async def read_answer(relay: Relay, handle: StreamHandle) -> bytes:
    """The whole of a stream as one `chat.completion` in JSON; what the upstream said in one piece, unchanged.

    Raises the error of a stream that failed, and `StreamStopped`.
    """
    reader = handle.reader or await relay.read(handle.key, heartbeat=False)
    assembly = Assembly(limit=relay.config.max_bytes)
    whole: bytes | None = None
    try:
        async for batch in reader:
            for entry in batch.entries:
                if not entry.event and whole_answer(entry.data):
                    whole = entry.data
                elif not entry.event:
                    assembly.add(entry.data)
            if batch.end is not None and (error := end_error(batch.end)) is not None:
                raise error
    finally:
        await relay.leave(reader)
    if whole is not None:
        return whole
    if (message := assembly.message()) is None:
        raise StreamTooLong("The answer is too large for one piece.")
    return json.encode(message)


def error_response(error: OpenAISSEError) -> Response:
    """An error as OpenAI's API would answer it, with a sentence in the client's language."""
    body = json.encode(error.body(translator()))
    response = Response(body, status=error.status, mimetype="application/json")
    response.headers.update(error.headers())
    response.vary.add("Accept-Language")
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
