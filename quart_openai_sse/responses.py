"""From the log to Quart: a stream as the app holds it, its reader as a response, an error as a response."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from quart import Response, current_app, request
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

from quart_openai_sse.errors import OpenAISSEError, StreamTooLong, Translate
from quart_openai_sse.formats import Format, end_data, end_error
from quart_openai_sse.formats.registry import create_format
from quart_openai_sse.logs import Reader
from quart_openai_sse.logs.entries import END_ID, End, Entry
from quart_openai_sse.messages import Catalogues, shipped
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.protocol.chunks import chunk_text, decode_chunk, whole_answer
from quart_openai_sse.protocol.sse import HEARTBEAT
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.running import StreamHandle

logger = logging.getLogger("quart_openai_sse")

_request_task: ContextVar[asyncio.Task[Any] | None] = ContextVar("quart_openai_sse_request_task", default=None)

CATALOGUES = "quart_openai_sse.messages"
"""Where an app's catalogues are, in `app.extensions`."""

STREAM_HEADERS = {
    # no-transform: a proxy that compresses holds events back. X-Accel-Buffering: nginx would too.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    # RFC 10036: the same for every proxy that knows it. A boolean of RFC 9651.
    "Incremental": "?1",
}
"""The headers that every event stream has."""


@dataclass(frozen=True, slots=True)
class StreamItem:
    """What `Stream.events` gives: a `chunk`, an app event under its name, and last `completed`, `failed` or `stopped`.

    *data* is the chunk, the app event's data, or what the `text` format says at the end; *id* is its place.
    """

    name: str
    data: Any
    id: str

    @property
    def text(self) -> str:
        """What a chunk's first choice says in words, or ""."""
        return chunk_text(json.encode(self.data)) if self.name == "chunk" else ""


class Stream:
    """A running or ended stream, in the hands of the app."""

    def __init__(self, relay: Relay, handle: StreamHandle) -> None:
        self._relay = relay
        self._handle = handle

    @property
    def id(self) -> str:
        """The stream's id, as in `GET /streams/<id>`."""
        return self._handle.id

    async def response(self, *, format: str = "text", after: str = "") -> Response:  # noqa: A002 (the word for it)
        """A Quart response that streams it, from behind the event *after*.

        Waits for the first output, at most `commit_after` seconds; a failure until then is raised, as are
        `StreamNotFound`, `StreamExpired`, `InvalidLastEventID` and `InvalidRequest` for an unknown format.
        """
        return await stream_response(
            self._relay, self._handle, create_format(format, translate=translator()), after=after, ids=True
        )

    @asynccontextmanager
    async def events(self, *, after: str = "") -> AsyncIterator[AsyncIterator[StreamItem]]:
        """Its chunks and events one by one, for the app itself; leaving the context ends the reading."""
        reader = await self._relay.read(self._handle.key, after=after, heartbeat=False)
        try:
            async with aclosing(_items(reader)) as items:
                yield items
        finally:
            await self._relay.leave(reader)

    async def stop(self, reason: str = "stopped") -> None:
        """Stops it; nothing happens if it has ended."""
        await self._relay.stop(self._handle, reason)


async def _items(reader: Reader) -> AsyncGenerator[StreamItem, None]:
    async for batch in reader:
        for number, entry in enumerate(batch.entries, batch.first_id):
            data = json.decode(entry.data) if entry.event else decode_chunk(entry.data)
            yield StreamItem(entry.event or "chunk", data, str(number))
        if (end := batch.end) is not None:
            yield StreamItem(end.outcome, end_data(end), END_ID)


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


def translator() -> Translate:
    """Translates what a person is told into the language that the current request's client prefers."""
    catalogues: Catalogues = current_app.extensions.get(CATALOGUES) or shipped()
    header = request.headers.get("Accept-Language")
    # Looked at when there is something to say: most streams end without a word of ours.
    return lambda sentence: _sentences(catalogues, header).get(sentence, sentence)


def _sentences(catalogues: Catalogues, header: str | None) -> Mapping[str, str]:
    asked = parse_accept_header(header, LanguageAccept).values()
    # Werkzeug's best_match would prefer zh to en-GB, whatever was asked for first.
    preferred = (name for each in asked for name in (each, each.partition("-")[0]))
    return next((catalogues.get(name, {}) for name in preferred if name == "en" or name in catalogues), {})


def error_response(error: OpenAISSEError) -> Response:
    """An error as OpenAI's API would answer it, with a sentence in the client's language."""
    body = json.encode(error.body(translator()))
    response = Response(body, status=error.status, mimetype="application/json")
    response.headers.update(error.headers())
    response.vary.add("Accept-Language")
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
