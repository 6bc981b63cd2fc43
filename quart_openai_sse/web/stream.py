"""A stream as an app uses it: as a response, or event by event."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import ref

from quart import Response, has_request_context, request

from quart_openai_sse.formats import Reading, end_data
from quart_openai_sse.formats.openai import answer_chunks
from quart_openai_sse.formats.registry import Formats
from quart_openai_sse.logs import Reader
from quart_openai_sse.logs.entries import END_ID, LOST, End, Kind
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import (
    delta_of,
    details_of,
    first_choice,
    reasoning_of_delta,
    refusal_of_delta,
    text_of_delta,
)
from quart_openai_sse.protocol.parsing import decode_chunk
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.running import StreamHandle
from quart_openai_sse.web.event_stream import last_event_id, resumed_response
from quart_openai_sse.web.language import translator
from quart_openai_sse.web.responses import refuse_in


@dataclass(frozen=True, slots=True)
class StreamItem:
    """One item of `Stream.events`: a `chunk`, an app event with its own name, or the last one, which is named
    `completed`, `failed` or `stopped`.

    *data* is the chunk, the app event's data, or the data of the last event in the `text` format. *id* is its event
    ID, for `after`.
    """

    name: str
    data: Any
    id: str

    text: str = ""
    """The text of a chunk's first choice, or its refusal, or ""."""
    reasoning: str = ""
    """The reasoning in a chunk's first choice, or ""."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What a chunk holds besides words, such as `citations` or `images`, by the members' names."""


class Stream:
    """A stream that can be resumed, while it runs and after its end."""

    def __init__(self, relay: Relay, handle: StreamHandle, formats: Formats) -> None:
        self._relay = relay
        self._handle = handle
        self._formats = formats
        self._started_in: ref[Any] | None = None

    @classmethod
    def started(cls, relay: Relay, handle: StreamHandle, formats: Formats) -> Stream:
        """A stream that the current request, if there is one, has started or attached to."""
        stream = cls(relay, handle, formats)
        if has_request_context() and not handle.attached:
            stream._started_in = ref(request._get_current_object())
        return stream

    @property
    def id(self) -> str:
        """The stream's id, as in `GET /streams/<id>`."""
        return self._handle.id

    async def response(self, *, format: str = "text", after: str | None = None) -> Response:  # noqa: A002 (its name)
        """A Quart response that streams the events behind the event ID *after*; `after=""` streams all of them.

        By default *after* is the current request's `Last-Event-ID` header or its `last_event_id` parameter; in the
        request that started the stream it is "", because the client's event ID is that of an earlier stream. As from
        `GET /streams/<id>`, the response is an empty 204 if the client already has the end.

        Waits for the first output, at most `commit_after` seconds; a failure until then is raised, as are
        `StreamNotFound`, `StreamExpired`, `InvalidLastEventID`, and `InvalidRequest` for an unknown format. An error
        that the app's view does not catch is written in the format, too.
        """
        reading = Reading(ids=True, retry=self._relay.config.retry, translate=translator())
        wire = self._formats.choose(format, reading)
        refuse_in(wire)
        if after is None:
            after = "" if self._is_new() else last_event_id()
        return await resumed_response(self._relay, self._handle, wire, after=after, late=True)

    @asynccontextmanager
    async def events(self, *, after: str = "") -> AsyncIterator[AsyncIterator[StreamItem]]:
        """Its chunks and events behind the event ID *after*, one by one; leaving the context ends the reading."""
        reader = await self._relay.read(self._handle, after=after, heartbeat=False)
        try:
            async with aclosing(_items(reader)) as items:
                yield items
        finally:
            await self._relay.readers.leave(reader)

    if not TYPE_CHECKING:  # type checkers report by themselves that there is no such method

        def __aiter__(self) -> NoReturn:
            # An iterator would not learn of a `break`, and the stream would count a reader that is gone.
            raise TypeError("A Stream can't be iterated over: write `async with stream.events() as events:` first.")

    def _is_new(self) -> bool:
        """Whether the current request has started it."""
        return self._started_in is not None and self._started_in() is request._get_current_object()

    async def stop(self, reason: str = "stopped") -> None:
        """Stops the stream; does nothing if it has ended."""
        await self._relay.stop(self._handle, reason)


async def _items(reader: Reader) -> AsyncGenerator[StreamItem, None]:
    end: End | None = None
    async for batch in reader:
        for place, entry in enumerate(batch.entries, batch.first):
            if entry.kind is Kind.EVENT:
                yield StreamItem(entry.name, json.decode(entry.data), batch.id(place))
            else:
                chunk = answer_chunks(entry.data)[0] if entry.kind is Kind.ANSWER else entry.data
                yield _chunk_item(decode_chunk(chunk), batch.id(place), whole=entry.whole, n=reader.about.n)
        end = batch.end
    end = end or LOST
    yield StreamItem(end.outcome, end_data(end), END_ID)


def _chunk_item(chunk: Mapping[str, Any], event_id: str, *, whole: bool, n: int) -> StreamItem:
    choice = first_choice(chunk, n=n) or {}
    delta = delta_of(choice, whole=whole)
    text, details = text_of_delta(delta) + refusal_of_delta(delta), details_of(chunk, choice, delta)
    return StreamItem("chunk", chunk, event_id, text, reasoning_of_delta(delta), details)
