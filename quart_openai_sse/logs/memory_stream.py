"""One stream in the memory of a process: its entries, its readers, and who waits for what."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from quart_openai_sse.errors import InvalidLastEventID, StreamStopped
from quart_openai_sse.logs.entries import END_ID, Batch, End, Entry

_PLACE = re.compile(r"[1-9][0-9]{0,15}")
_ENTRY_OVERHEAD = 120  # bytes an entry costs beside its data
_EVENT_OVERHEAD = 120  # and what the name of an app event adds to it
_LOOKS = 4  # at whether anything has come, in the time of a heartbeat


class OwningLog(Protocol):
    """The log, as its streams know it."""

    max_entries: int
    max_bytes: int
    high_water: int

    def charge(self, size: int) -> None:
        """Counts *size* bytes more. Raises `StreamTooLong` if there is no room for them."""
        ...

    def refund(self, size: int) -> None:
        """Counts *size* bytes less."""
        ...

    def closed(self, stream: MemoryStream) -> None:
        """A stream has ended."""
        ...

    def left(self, stream: MemoryStream) -> None:
        """The last reader of a stream has left."""
        ...


class MemoryStream(ABC):
    """A stream, and its `Writer`.

    What comes is handed to the readers that wait for it, as it is; `take` is for those that were busy, or came later.
    """

    retain: bool

    def __init__(self, log: OwningLog, key: str, digest: str) -> None:
        self.key = key
        self.digest = digest
        self.last = 0
        """How many entries have come."""
        self.end: End | None = None
        self.size = 0
        """The bytes that are counted for what is kept of it."""
        self.readers: set[MemoryReader] = set()
        self._log = log
        self._stop_reason: str | None = None
        self._watch: _Watch | None = None

    @property
    def came_to_nothing(self) -> bool:
        """Whether it failed before its first entry."""
        return self.end is not None and self.end.outcome == "failed" and self.last == 0

    @abstractmethod
    def place(self, after: str) -> int:
        """The place behind the entry *after*. Raises `InvalidLastEventID` and `StreamExpired`."""

    @abstractmethod
    def take(self, place: int) -> Sequence[Entry]:
        """The entries behind *place*, so many as go into a batch."""

    @abstractmethod
    def put_back(self, entries: Sequence[Entry]) -> None:
        """Takes what was handed to a reader that only wanted to know whether something comes."""

    def stop(self, reason: str) -> None:
        """Asks the producer to stop."""
        if self.end is None and self._stop_reason is None:
            self._stop_reason = reason
            if self._watch is not None:
                self._watch.stopped(reason)

    def enter(self, reader: MemoryReader) -> None:
        """There is one reader more."""
        self.readers.add(reader)
        if self._watch is not None:
            self._watch.found()

    def leave(self, reader: MemoryReader) -> None:
        """There is one reader less."""
        self.readers.discard(reader)
        if not self.readers:
            if self._watch is not None:
                self._watch.lost()
            self._log.left(self)

    # The writer

    @abstractmethod
    def append(self, entries: Sequence[Entry]) -> bool:
        """See `Writer.append`."""

    @abstractmethod
    async def room(self) -> None:
        """See `Writer.room`."""

    async def close(self, end: End) -> None:
        """See `Writer.close`."""
        if self.end is not None:
            return
        self.end = end
        if self._watch is not None:
            self._watch.found()
            self._watch = None
        self._hand_over(())
        self._log.closed(self)

    def watch(self, *, stopped: Callable[[str], object], left: Callable[[], object], linger: float) -> None:
        """See `Writer.watch`."""
        if self.end is not None:
            return
        self._watch = _Watch(stopped=stopped, left=left, linger=linger)
        if self._stop_reason is not None:
            stopped(self._stop_reason)
        if not self.readers:
            self._watch.lost()

    def _hand_over(self, entries: Sequence[Entry]) -> None:
        """Gives *entries* to the readers that wait."""
        for reader in self.readers:
            waiter = reader.waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(entries)

    def _place(self, after: str) -> int:
        if not after:
            return 0
        if after == END_ID and self.end is not None:
            return self.last
        if not _PLACE.fullmatch(after) or int(after) > self.last:
            raise InvalidLastEventID("The last event ID is not a place in this stream.")
        return int(after)


def size_of(entries: Sequence[Entry]) -> int:
    """What they are counted for, in bytes."""
    size = 0
    for entry in entries:
        size += len(entry.data) + (_ENTRY_OVERHEAD + _EVENT_OVERHEAD if entry.event else _ENTRY_OVERHEAD)
    return size


class _Watch:
    """Who is told that a stream is to stop, or that nobody has read it for *linger* seconds."""

    def __init__(self, *, stopped: Callable[[str], object], left: Callable[[], object], linger: float) -> None:
        self.stopped = stopped
        self._left = left
        self._linger = linger
        self._timer: asyncio.TimerHandle | None = None

    def lost(self) -> None:
        """The last reader has left."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._linger, self._left)

    def found(self) -> None:
        """There is a reader again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class MemoryReader:
    """See `Reader`."""

    def __init__(self, stream: MemoryStream, place: int, *, at_end: bool, heartbeat: float | None) -> None:
        self.place = place
        self.at_end = at_end
        self.waiter: asyncio.Future[Sequence[Entry]] | None = None
        """While it has had everything: what comes next, nothing at the end."""
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._opening = False
        if heartbeat is not None:
            self._look(place, 0, heartbeat / _LOOKS)
        stream.enter(self)

    async def opened(self, timeout: float) -> None:
        """See `Reader.opened`."""
        stream = self._stream
        if stream.last == 0 and stream.end is None:
            self._opening = True
            self.waiter = waiter = self._loop.create_future()
            timer = self._loop.call_later(timeout, self._give_up)
            try:
                stream.put_back(await waiter)
            finally:
                timer.cancel()
                self._opening = False
        if stream.last == 0 and stream.end is not None:
            if stream.end.error is not None:
                raise stream.end.error
            if stream.end.outcome == "stopped":
                raise StreamStopped(f"The stream was stopped: {stream.end.reason}.")

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        stream, place = self._stream, self.place
        if place == stream.last and stream.end is None:
            self.waiter = waiter = self._loop.create_future()
            entries = await waiter
        elif self.at_end:
            raise StopAsyncIteration
        else:
            if place:  # a reader that is far behind must not starve the loop, nor miss that its client has left
                await asyncio.sleep(0)
            entries = stream.take(place)
        self.place = last = place + len(entries)
        if stream.end is None or last < stream.last:
            return Batch(place + 1, entries)
        self.at_end = True
        return Batch(place + 1, entries, stream.end)

    async def aclose(self) -> None:
        """See `Reader.aclose`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self in self._stream.readers:
            self._stream.leave(self)

    def _give_up(self) -> None:
        """The waiting is over, and nothing has come."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(())

    def _look(self, place: int, silent: int, pause: float) -> None:
        """Looks, with pauses, how often in a row nothing has come to the reader, who waits at *place*.

        One look less than makes a heartbeat: a silence is as old as the look before the first that finds it.
        """
        waiting = self.waiter is not None and not self.waiter.done() and not self._opening
        silent = silent + 1 if waiting and self.place == place else 0
        if silent >= _LOOKS - 1:
            self._give_up()
            silent = 0
        self._timer = self._loop.call_later(pause, self._look, self.place if waiting else -1, silent, pause)
