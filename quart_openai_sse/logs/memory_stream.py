"""One stream in the memory of a process: its writer, its readers, and what each of them waits for."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Protocol

from quart_openai_sse.flow import Flow
from quart_openai_sse.logs.entries import END_ID, About, Batch, End, Entry, parse_place

_ENTRY_OVERHEAD = 120  # bytes that an entry takes in addition to its data
_EVENT_OVERHEAD = 120  # bytes that the name of an app event adds
STREAM_OVERHEAD = 2048
"""Bytes that a stream takes in addition to its entries."""


class MemoryStream(ABC):
    """A stream, and its `Writer`.

    New entries are handed to the readers that wait for them; `take` is for readers that were busy or came later.
    """

    retain: bool

    def __init__(self, log: OwningLog, key: str, about: About, digest: str) -> None:
        self.key = key
        self.about = about
        self.digest = digest
        self.last = 0
        """The number of entries that were appended."""
        self.end: End | None = None
        self.abandoned = False
        """Whether its start was refused: it failed before its producer watched it."""
        self.size = 0
        """The bytes of the entries that it holds, as the log counts them."""
        self.readers: set[MemoryReader] = set()
        self._log = log
        self._stop_reason: str | None = None
        self._watch: _Watch | None = None

    @property
    def failed_empty(self) -> bool:
        """Whether it failed before its first entry."""
        return self.end is not None and self.end.outcome == "failed" and self.last == 0

    @abstractmethod
    def place(self, after: str) -> int:
        """The place behind the entry *after*. Raises `InvalidLastEventID` and `StreamExpired`."""

    @abstractmethod
    def take(self, place: int) -> Sequence[Entry]:
        """The entries behind *place*, as many as fit into one batch."""

    def stop(self, reason: str) -> None:
        """Asks the producer to stop."""
        if self.end is None and self._stop_reason is None:
            self._stop_reason = reason
            if self._watch is not None:
                self._watch.stopped(reason)

    def enter(self, reader: MemoryReader) -> None:
        """Adds a reader."""
        self.readers.add(reader)
        if self._watch is not None:
            self._watch.cancel()

    def leave(self, reader: MemoryReader) -> None:
        """Removes a reader."""
        self.readers.discard(reader)
        if not self.readers:
            if self._watch is not None:
                self._watch.begin()
            self._log.left(self)

    # The writer

    @abstractmethod
    def append(self, entries: Sequence[Entry]) -> Flow:
        """See `Writer.append`."""

    @abstractmethod
    async def room(self) -> None:
        """See `Writer.room`."""

    async def stored(self) -> None:  # noqa: B027 (not abstract: in one process there is nothing to do)
        """See `Writer.stored`."""

    def keep(self, request: bytes) -> None:  # noqa: B027
        """See `Writer.keep`. No other process needs it."""

    async def decide(self, end: End) -> bool:
        """See `Writer.decide`. No other process can end the stream."""
        return True

    async def close(self, end: End) -> None:
        """See `Writer.close`."""
        if self.end is not None:
            return
        self.end = end
        self.abandoned = self._watch is None and self.failed_empty
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        batch = Batch(self.last + 1, (), end)
        for reader in self.readers:
            if not reader.give(batch):
                reader.open()
        self._log.closed(self)

    def watch(
        self,
        *,
        stopped: Callable[[str], object],
        left: Callable[[], object],
        lost: Callable[[], object],
        linger: float,
    ) -> None:
        """See `Writer.watch`. No other process can end the stream, so *lost* is not called."""
        if self.end is not None:
            return
        self._watch = _Watch(stopped=stopped, left=left, linger=linger)
        if self._stop_reason is not None:
            stopped(self._stop_reason)
        if not self.readers:
            self._watch.begin()

    def _place(self, after: str) -> int:
        if after == END_ID and self.end is not None:
            return self.last
        return parse_place(after, last=self.last) if after else 0


class OwningLog(Protocol):
    """The log that a stream is in, as the stream needs it."""

    max_entries: int
    max_bytes: int
    high_water: int
    size: int
    """The bytes of all streams."""

    def charge(self, size: int) -> None:
        """Counts *size* more bytes. Raises `StreamTooLong` if the log is full."""
        ...

    def closed(self, stream: MemoryStream) -> None:
        """A stream has ended."""
        ...

    def left(self, stream: MemoryStream) -> None:
        """The last reader of a stream has left."""
        ...


def size_of(entries: Sequence[Entry]) -> int:
    """The bytes that *entries* are counted for."""
    size = 0
    for entry in entries:
        size += len(entry.data) + (_ENTRY_OVERHEAD + _EVENT_OVERHEAD if entry.name else _ENTRY_OVERHEAD)
    return size


@dataclass(slots=True)
class _Watch:
    """Calls *stopped* when the stream is to stop, and *left* when no reader has read it for *linger* seconds.

    Its timer has a context of its own, like all timers of this package: asyncio keeps a timer that was cancelled until
    it is due, and with its context everything that the request's contextvars refer to.
    """

    stopped: Callable[[str], object]
    left: Callable[[], object]
    linger: float
    timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The last reader has left."""
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(self.linger, self.left, context=Context())

    def cancel(self) -> None:
        """There is a reader again, or the stream has ended."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class MemoryReader:
    """See `Reader`."""

    # There are very many: with slots each takes 100 bytes less.
    __slots__ = (
        "_closed",
        "_loop",
        "_next",
        "_opening",
        "_silent_since",
        "_stream",
        "_timer",
        "about",
        "at_end",
        "place",
    )

    def __init__(self, stream: MemoryStream, place: int, *, at_end: bool, heartbeat: float | None) -> None:
        self.place = place
        """The number of entries that were delivered to it or skipped."""
        self.about = stream.about
        self.at_end = at_end
        self._stream = stream
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._opening: asyncio.Future[None] | None = None
        self._next: asyncio.Future[Batch] | None = None
        """The future that `__anext__` returned, while the reader waits for the next entry."""
        self._silent_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        if heartbeat is not None:
            self._timer = self._loop.call_later(heartbeat, self._check_silence, heartbeat, context=Context())
        stream.enter(self)

    @property
    def waits(self) -> bool:
        """Whether it waits for the next batch."""
        return self._next is not None and not self._next.done()

    async def opened(self, timeout: float) -> None:
        """See `Reader.opened`."""
        stream = self._stream
        if stream.last == 0 and stream.end is None and not self._closed:
            self._opening = self._loop.create_future()
            timer = self._loop.call_later(timeout, self.open, context=Context())
            try:
                await self._opening
            finally:
                timer.cancel()
                self._opening = None
        if stream.last == 0 and stream.end is not None and (error := stream.end.exception()) is not None:
            raise error

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    def __anext__(self) -> Awaitable[Batch]:
        stream = self._stream
        if self.place < stream.last or stream.end is not None or self._closed:
            return self._take()
        self._silent_since = self._loop.time()
        self._next = self._loop.create_future()
        return self._next

    def give(self, batch: Batch) -> bool:
        """Hands over *batch*, which is not in the stream yet. `False`: the reader is not waiting for it."""
        waiting = self._next
        if waiting is None or waiting.done():
            return False
        self.place += len(batch.entries)
        self.at_end = batch.end is not None
        waiting.set_result(batch)
        return True

    def open(self) -> bool:
        """Lets `opened` return. `False`: it was not waiting."""
        if self._opening is None or self._opening.done():
            return False
        self._opening.set_result(None)
        return True

    async def aclose(self) -> None:
        """See `Reader.aclose`."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.open()
        if self._next is not None and not self._next.done():
            self._next.set_exception(StopAsyncIteration)
        if self in self._stream.readers:
            self._stream.leave(self)

    async def _take(self) -> Batch:
        """The next batch of what the stream holds already."""
        if self.at_end or self._closed:
            raise StopAsyncIteration
        stream, place = self._stream, self.place
        if place:  # A reader that is far behind must not starve the loop, nor miss that its client has disconnected.
            await asyncio.sleep(0)
        entries = stream.take(place)
        self.place = last = place + len(entries)
        self.at_end = stream.end is not None and last == stream.last
        return Batch(place + 1, entries, stream.end if self.at_end else None)

    def _check_silence(self, heartbeat: float) -> None:
        """Gives an empty batch to a reader that has been waiting for *heartbeat* seconds."""
        waiting = self._next is not None and not self._next.done()
        now = self._loop.time()
        due = self._silent_since + heartbeat if waiting else now + heartbeat
        if due <= now:
            self.give(Batch(self.place + 1, ()))
            due = now + heartbeat
        self._timer = self._loop.call_at(due, self._check_silence, heartbeat, context=Context())
