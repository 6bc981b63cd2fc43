"""A stream log in the memory of one process and one event loop."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence

from quart_openai_sse.entries import END_ID, Batch, End, Entry
from quart_openai_sse.errors import (
    InvalidLastEventID,
    KeyReused,
    StreamExpired,
    StreamNotFound,
    StreamStopped,
    StreamTooLong,
)
from quart_openai_sse.logs.compact import CompactEntries

_PLACE = re.compile(r"[1-9][0-9]{0,15}")
_BATCH_BYTES = 256 << 10  # what a reader that is far behind gets at once
_ENTRY_OVERHEAD = 120  # bytes an entry costs beside its data
_EVENT_OVERHEAD = 120  # and what the name of an app event adds to it
_MAX_TOMBSTONES = 100_000


class MemoryLog:
    """Keeps streams in memory: for one worker. *clock* gives seconds."""

    def __init__(
        self,
        *,
        retention: float = 300,
        tombstone: float = 3600,
        max_entries: int = 200_000,
        max_bytes: int = 64 << 20,
        max_log_bytes: int = 512 << 20,
        high_water: int = 256 << 10,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.retention = retention
        self.tombstone = tombstone
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.max_log_bytes = max_log_bytes
        self.high_water = high_water
        self.clock = clock
        self.size = 0  # of all streams, in bytes
        self._streams: dict[str, _Stream] = {}
        self._ended: OrderedDict[str, float] = OrderedDict()  # when each retained stream ended, oldest first
        self._tombstones: OrderedDict[str, tuple[float, str]] = OrderedDict()  # when it expired, and its digest
        self._timer: asyncio.TimerHandle | None = None

    async def create(self, key: str, *, digest: str, retain: bool) -> MemoryWriter | None:
        """See `StreamLog.create`."""
        self._sweep()
        known = self._digest(key)
        if known is not None:
            if known != digest:
                raise KeyReused("This Idempotency-Key was used before with another body.")
            return None
        self._forget(key)
        self._streams[key] = stream = _Stream(self, key, digest, retain)
        return MemoryWriter(stream)

    async def read(self, key: str, *, after: str = "", heartbeat: float | None = None) -> MemoryReader:
        """See `StreamLog.read`."""
        self._sweep()
        stream = self._find(key)
        place = stream.place(after)
        if not stream.retain and (stream.readers or place or stream.last > len(stream.entries)):
            # A second reader, however slow, would hold back the first.
            raise StreamExpired("This stream is not kept: only who started it reads it.")
        return MemoryReader(stream, place, at_end=after == END_ID, heartbeat=heartbeat)

    async def stop(self, key: str, reason: str) -> None:
        """See `StreamLog.stop`."""
        if key not in self._tombstones:
            self._find(key).stop(reason)

    def _find(self, key: str) -> _Stream:
        if key in self._tombstones:
            raise StreamExpired("This stream has ended and is no longer kept.")
        if key not in self._streams:
            raise StreamNotFound("There is no such stream.")
        return self._streams[key]

    def _digest(self, key: str) -> str | None:
        """The digest of what holds *key*."""
        if key in self._tombstones:
            return self._tombstones[key][1]
        stream = self._streams.get(key)
        return None if stream is None or stream.came_to_nothing else stream.digest

    # What is kept, and how long ---------------------------------------------------------------------------------

    def _closed(self, stream: _Stream) -> None:
        if stream.retain:
            self._ended[stream.key] = self.clock()
            self._sweep()
        elif not stream.readers:
            self._forget(stream.key)

    def _forget(self, key: str) -> None:
        stream = self._streams.pop(key, None)
        self._ended.pop(key, None)
        if stream is not None:
            stream.kept = False
            self.size -= stream.size

    def _sweep(self, *, room: int = 0) -> None:
        """Gives up what is over its time, or over the bytes of the whole log. Readers keep what they hold."""
        now = self.clock()
        while self._ended:
            key, ended = next(iter(self._ended.items()))
            if ended + self.retention > now and self.size + room <= self.max_log_bytes:
                break
            self._tombstones[key] = (now, self._streams[key].digest)
            self._forget(key)
        while self._tombstones:
            key, (expired, _) = next(iter(self._tombstones.items()))
            if expired + self.tombstone > now and len(self._tombstones) <= _MAX_TOMBSTONES:
                break
            del self._tombstones[key]
        self._sweep_later(now)

    def _sweep_later(self, now: float) -> None:
        """Memory is given back also if nobody calls."""
        if self._timer is None and self._ended:
            wait = max(0.0, next(iter(self._ended.values())) + self.retention - now)
            self._timer = asyncio.get_running_loop().call_later(wait + 0.1, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._sweep()


class _Stream:
    """One stream's entries, and who waits for what."""

    def __init__(self, log: MemoryLog, key: str, digest: str, retain: bool) -> None:
        self.log = log
        self.key = key
        self.digest = digest
        self.retain = retain
        self.kept = True
        self.entries: list[Entry] | CompactEntries = CompactEntries() if retain else []
        self.last = 0  # how many entries have come
        self.size = 0
        self.end: End | None = None
        self.readers: set[MemoryReader] = set()
        self.full = False
        self.room: asyncio.Future[None] | None = None
        """What the producer waits for."""
        self.stop_reason: str | None = None
        self.watch: _Watch | None = None

    @property
    def came_to_nothing(self) -> bool:
        return self.end is not None and self.end.outcome == "failed" and self.last == 0

    def place(self, after: str) -> int:
        if not after:
            return 0
        if after == END_ID and self.end is not None:
            return self.last
        if not _PLACE.fullmatch(after) or int(after) > self.last:
            raise InvalidLastEventID("The last event ID is not a place in this stream.")
        return int(after)

    def append(self, entries: Sequence[Entry]) -> bool:
        if self.end is not None:
            return False
        size = _ENTRY_OVERHEAD * len(entries)
        for entry in entries:
            size += len(entry.data) + (_EVENT_OVERHEAD if entry.event else 0)
        log = self.log
        if self.size + size > log.max_bytes or (self.retain and self.last + len(entries) > log.max_entries):
            raise StreamTooLong("The stream outgrew its limit of bytes or entries.")
        if log.size + size > log.max_log_bytes:
            log._sweep(room=size)
            if log.size + size > log.max_log_bytes:
                raise StreamTooLong("The stream log is full.")
        self.entries.extend(entries)
        self.last += len(entries)
        self.size += size
        if self.kept:
            log.size += size
        self.full = self.size >= log.high_water and not self.retain
        self.wake()
        return not self.full

    def take(self, place: int) -> list[Entry]:
        """The entries behind *place*, so many as go into a batch. What is not retained is given up so."""
        if isinstance(self.entries, CompactEntries):
            return self.entries.batch(place, _BATCH_BYTES)
        entries, self.entries = self.entries, []
        if self.kept:
            self.log.size -= self.size
        self.size = 0
        self.full = False
        self.make_room()
        return entries

    def close(self, end: End) -> None:
        if self.end is None:
            self.end = end
            self.unwatch()
            self.make_room()
            self.wake()
            self.log._closed(self)

    def stop(self, reason: str) -> None:
        if self.end is None and self.stop_reason is None:
            self.stop_reason = reason
            if self.watch is not None:
                self.watch.stopped(reason)

    def wake(self) -> None:
        for reader in self.readers:
            reader.wake()

    def make_room(self) -> None:
        if self.room is not None and not self.room.done():
            self.room.set_result(None)

    # Who reads --------------------------------------------------------------------------------------------------

    def enter(self, reader: MemoryReader) -> None:
        self.readers.add(reader)
        if self.watch is not None:
            self.watch.found()

    def leave(self, reader: MemoryReader) -> None:
        self.readers.discard(reader)
        if self.readers:
            return
        if self.watch is not None:
            self.watch.lost()
        if self.end is not None and not self.retain:
            self.log._forget(self.key)

    def unwatch(self) -> None:
        if self.watch is not None:
            self.watch.found()
            self.watch = None


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


class MemoryWriter:
    """See `Writer`."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def append(self, entries: Sequence[Entry]) -> bool:
        """See `Writer.append`."""
        return self._stream.append(entries)

    async def room(self) -> None:
        """See `Writer.room`."""
        stream = self._stream
        while stream.full and stream.end is None:
            stream.room = asyncio.get_running_loop().create_future()
            await stream.room

    async def close(self, end: End) -> None:
        """See `Writer.close`."""
        self._stream.close(end)

    def watch(self, *, stopped: Callable[[str], object], left: Callable[[], object], linger: float) -> None:
        """See `Writer.watch`."""
        stream = self._stream
        if stream.end is not None:
            return
        stream.watch = watch = _Watch(stopped=stopped, left=left, linger=linger)
        if stream.stop_reason is not None:
            stopped(stream.stop_reason)
        if not stream.readers:
            watch.lost()


class MemoryReader:
    """See `Reader`."""

    def __init__(self, stream: _Stream, place: int, *, at_end: bool, heartbeat: float | None) -> None:
        self.place = place
        self.at_end = at_end
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[bool] | None = None
        self._waiting_since = 0.0
        self._heartbeat = heartbeat
        self._timer: asyncio.TimerHandle | None = None
        stream.enter(self)

    async def opened(self, timeout: float) -> None:
        """See `Reader.opened`."""
        stream = self._stream
        timer = self._loop.call_later(timeout, self._give_up)
        try:
            while stream.last == 0 and stream.end is None:
                if not await self._wait():
                    return
        finally:
            timer.cancel()
        if stream.last == 0 and stream.end is not None:
            if stream.end.error is not None:
                raise stream.end.error
            if stream.end.outcome == "stopped":
                raise StreamStopped(f"The stream was stopped: {stream.end.reason}.")

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        if self.at_end:
            raise StopAsyncIteration
        if (batch := self._take()) is not None:
            # A reader that is far behind must not starve the loop, nor miss that its client has left.
            await asyncio.sleep(0)
            return batch
        while True:
            if not await self._wait(self._heartbeat):
                return Batch(self.place + 1, ())
            if (batch := self._take()) is not None:
                return batch

    async def aclose(self) -> None:
        """See `Reader.aclose`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._stream.leave(self)

    def wake(self) -> None:
        """Something has come."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def _take(self) -> Batch | None:
        stream, place = self._stream, self.place
        if stream.end is None and place == stream.last:
            return None
        entries = stream.take(place)
        self.place += len(entries)
        end = stream.end if self.place == stream.last else None
        self.at_end = end is not None
        return Batch(place + 1, entries, end)

    async def _wait(self, heartbeat: float | None = None) -> bool:
        """Whether something came, before time was up or the heartbeat is due."""
        if heartbeat is not None:
            self._waiting_since = self._loop.time()
            if self._timer is None:  # one for many waits: it looks at the time when it is over
                self._timer = self._loop.call_later(heartbeat, self._beat)
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _beat(self) -> None:
        self._timer = None
        if self._waiter is not None and self._heartbeat is not None:
            due = self._waiting_since + self._heartbeat
            if due <= self._loop.time():
                self._give_up()
            else:
                self._timer = self._loop.call_at(due, self._beat)

    def _give_up(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(False)
