"""The producer's side of a stream's log: counts and times what comes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from quart_openai_sse.errors import OpenAISSEError
from quart_openai_sse.logs import Writer
from quart_openai_sse.logs.entries import Entry
from quart_openai_sse.observers import APP, StreamRecord
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.upstreams import Attempt


class Intake:
    """The producer's side of the log: counts and times what comes, and puts it together for `on_end`.

    Beyond *assemble* bytes of chunks there is no message; 0: nothing is put together.
    """

    def __init__(
        self,
        writer: Writer,
        record: StreamRecord,
        *,
        assemble: int = 0,
        on_first: Callable[[], None],
        charge: Callable[[], None] | None = None,
    ) -> None:
        self.record = record
        self.message = Assembly(limit=assemble) if assemble else None
        self.events: list[tuple[str, Any]] = []
        self.room = writer.room
        self._append: Callable[[list[Entry]], bool] = writer.append
        self._on_first = on_first
        self._charge = charge
        self._told = charge is not None or self.message is not None
        """Whether anybody is told of each entry."""
        self.began = monotonic()
        """When the stream began, by `time.monotonic`."""
        self._last = -math.inf

    def elapsed(self) -> float:
        """Seconds since the stream began."""
        return monotonic() - self.began

    def close(self) -> None:
        """Takes nothing more: what a producer still says once its stream is interrupted is not part of it."""
        self._append = _refuse

    def append(self, entries: list[Entry]) -> bool:
        """Adds entries to the log, output among the first of them. `False`: there is no room for more now.

        Raises `StreamTooLong` and `TokensSpent`.
        """
        room = self._append(entries)
        record, now = self.record, entries[-1].t
        for entry in entries:
            if not entry.event:
                record.chunks += 1
                record.bytes += len(entry.data)
        if now - self._last > record.longest_gap:
            self._note_gap(now)
        self._last = now
        if self._told:
            self._tell(entries)
        return room

    def _note_gap(self, now: float) -> None:
        """Nothing had come for longer than ever before."""
        if self.record.time_to_first_output is None:
            self.record.time_to_first_output = now
            self._on_first()
        else:
            self.record.longest_gap = now - self._last

    def _tell(self, entries: list[Entry]) -> None:
        if (message := self.message) is not None:
            for entry in entries:
                if entry.event:
                    self.events.append((entry.event, json.decode(entry.data)))
                else:
                    message.add(entry.data)
        if self._charge is not None:
            self._charge()


class Attempts:
    """The requests upstream of one stream, as its record and its observers are told of them."""

    def __init__(self, record: StreamRecord, *, on_retry: Callable[[], None]) -> None:
        self._record = record
        self._on_retry = on_retry

    def begin(self, upstream: str) -> None:
        """See `Sink.begin`."""
        self._record.attempts += 1
        if self._record.upstream != APP:
            self._record.upstream = upstream

    def failed(self, attempt: Attempt) -> None:
        """See `Sink.failed`."""
        self._record.failures += (f"{attempt.upstream}: {attempt.error.code}",)
        if attempt.wait is not None:
            self._on_retry()


def _refuse(_: Sequence[Entry]) -> bool:
    raise OpenAISSEError("The stream has ended.")
