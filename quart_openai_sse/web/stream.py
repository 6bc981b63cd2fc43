"""A stream as the app holds it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from quart import Response

from quart_openai_sse.formats import end_data
from quart_openai_sse.formats.registry import create_format
from quart_openai_sse.logs import Reader
from quart_openai_sse.logs.entries import END_ID
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import chunk_text, decode_chunk
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.running import StreamHandle
from quart_openai_sse.web.language import translator
from quart_openai_sse.web.responses import stream_response


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
