"""The producer's side of a stream's log: counts, times and assembles the entries on their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from quart_openai_sse.errors import OpenAISSEError
from quart_openai_sse.flow import ENOUGH, Flow
from quart_openai_sse.logs.entries import Entry, Kind
from quart_openai_sse.observers import APP, StreamRecord
from quart_openai_sse.producers.costs import RequestCost
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.upstreams import Attempt

_EVENT = Kind.EVENT


class EntryWriter(Protocol):
    """The part of a `Writer` that takes entries."""

    def append(self, entries: Sequence[Entry]) -> Flow:
        """See `Writer.append`."""
        ...

    async def room(self) -> None:
        """See `Writer.room`."""
        ...


class Intake:
    """The producer's side of the log.

    *charge* is called after each addition, with the number of chunks. *assemble* is the most bytes of chunks that are
    put together to a message for `on_end`, the first of *n* choices; with 0 no message is put together. *hold* is
    called with the bytes that are kept for it.
    """

    def __init__(
        self,
        writer: EntryWriter,
        record: StreamRecord,
        *,
        assemble: int = 0,
        n: int = 1,
        hold: Callable[[int], object],
        charge: Callable[[int], None] | None = None,
    ) -> None:
        self.record = record
        self.message = Assembly(n=n, limit=assemble) if assemble else None
        self.events: list[tuple[str, Any]] = []
        """The names and data of the app events, up to *assemble* bytes."""
        self._event_room = assemble
        self.room = writer.room
        self.on_first: Callable[[], object] | None = None
        """Called after the first output."""
        self.began = monotonic()
        """When the stream began, by `time.monotonic`."""
        self._writer = writer
        self._hold = hold
        self._charge = charge
        self.closed = False
        """Whether entries are refused: what a producer yields after its interruption is not part of the stream."""
        self._last = 0.0

    def elapsed(self) -> float:
        """Seconds since the stream began."""
        return monotonic() - self.began

    def append(self, entries: list[Entry]) -> Flow:
        """Adds entries to the log, as `Writer.append`; the first addition has output.

        Raises `StreamTooLong` and `TokensSpent`.
        """
        if self.closed:
            raise OpenAISSEError("The stream has ended.")
        flow = self._writer.append(entries)
        if flow is ENOUGH:  # the stream has ended elsewhere
            return flow
        record, now = self.record, entries[-1].t
        for entry in entries:
            if entry.kind is not _EVENT:
                record.chunks += 1
                record.bytes += len(entry.data)
        if record.time_to_first_output is None:
            record.time_to_first_output = now
            if self.on_first is not None:
                self.on_first()
        elif now - self._last > record.longest_gap:
            record.longest_gap = now - self._last
        self._last = now
        if self.message is not None:
            self._assemble(self.message, entries)
        if self._charge is not None:
            self._charge(record.chunks)
        return flow

    def _assemble(self, message: Assembly, entries: list[Entry]) -> None:
        self._hold(sum(len(entry.data) for entry in entries))
        for entry in entries:
            if entry.kind is not _EVENT:
                message.add(entry.data, whole=entry.whole)
                continue
            self._event_room -= len(entry.data)
            if self._event_room >= 0:
                self.events.append((entry.name, json.decode(entry.data)))


@dataclass(slots=True)
class Attempts:
    """Puts the upstream requests of one stream on its record, and calls *on_retry* before each retry.

    *cost* is that of the request, if tokens are limited.
    """

    record: StreamRecord
    on_retry: Callable[[], object]
    cost: RequestCost | None = None

    def begin(self, upstream: str) -> None:
        """See `Sink.begin`."""
        self.record.attempts += 1
        if self.cost is not None:
            self.cost.begin()
        if self.record.upstream != APP:
            self.record.upstream = upstream

    def failed(self, attempt: Attempt) -> None:
        """See `Sink.failed`."""
        self.record.failures += (f"{attempt.upstream}: {attempt.error.code}",)
        if self.cost is not None:
            self.cost.failed(attempt.error)
        if attempt.wait is not None:
            self.on_retry()
