"""A stream of another process as its readers here see it: a window in memory, and the rest from the store."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.flow import Flow
from quart_openai_sse.logs.entries import About, Batch, End, Entry
from quart_openai_sse.logs.memory_stream import MemoryReader, MemoryStream, OwningLog, size_of

_WINDOW = 256 << 10  # bytes
_SOONEST, _LATEST = 0.1, 1.0  # seconds until a store that could not be reached is asked again


class Paging(Protocol):
    """The part of a `MirrorLog` that its mirrors need."""

    def page(self, key: str, place: int) -> asyncio.Task[Sequence[Entry]]:
        """Loads the entries behind *place* as the store has them, at least one. Several readers may wait for it.

        Raises `LogUnavailable`, and `StreamExpired` or `StreamNotFound` for a stream that is no longer kept.
        """
        ...

    def fill(self, stream: MirrorStream) -> None:
        """Brings the mirror up to what the store has."""
        ...

    def unread(self, stream: MirrorStream) -> None:
        """The last reader has left."""
        ...


class MirrorStream(MemoryStream):
    """A stream of another process. It is never written to."""

    retain = True

    def __init__(self, log: OwningLog, paging: Paging, key: str) -> None:
        super().__init__(log, key, About(id=""), "")
        self.opening: asyncio.Task[None] | None = None
        """Follows the stream, and loads its state."""
        self.openers = 0
        """Reads that wait for that, or have not made their reader yet."""
        self.filling: asyncio.Task[None] | None = None
        self.base = 0
        """The place in front of the window."""
        self.known = 0
        """How many entries the store has, as far as that is known."""
        self.again = False
        """Whether something may have been written since the fill has begun."""
        self._paging = paging
        self._window: deque[Entry] = deque()

    def begin(self, about: About, place: int) -> None:
        """The window begins behind *place*."""
        self.about = about
        self.discard()
        self._window.clear()
        self.base = self.last = place
        if place:
            for reader in self.readers:
                reader.open()

    def extend(self, first: int, entries: Sequence[Entry]) -> bool:
        """Adds entries, those it has already left out. `False`: some before them are missing, and none were added."""
        if first > self.last + 1:
            return False
        if missing := self.last + 1 - first:
            entries = entries[missing:]
        if entries and self.end is None:
            self._window.extend(entries)
            self.size += size_of(entries)
            self._log.size += size_of(entries)
            batch = Batch(self.last + 1, entries, encoded={} if len(self.readers) > 1 else None)
            for reader in self.readers:
                if not reader.give(batch):
                    reader.open()
            self.last += len(entries)
            self._trim()
        return True

    def finish(self, end: End) -> None:
        """The stream has ended behind what the mirror has."""
        if self.end is None:
            self.end = end
            batch = Batch(self.last + 1, (), end)
            for reader in self.readers:
                if not reader.give(batch):
                    reader.open()

    def discard(self) -> None:
        """Gives back its memory."""
        self._log.size -= self.size
        self.size = 0

    def leave(self, reader: MemoryReader) -> None:
        """See `MemoryStream.leave`."""
        self.readers.discard(reader)
        if not self.readers and not self.openers:
            self._paging.unread(self)

    def place(self, after: str) -> int:
        """See `MemoryStream.place`."""
        return self._place(after)

    def take(self, place: int) -> Sequence[Entry]:
        """See `MemoryStream.take`. Nothing for a place in front of the window."""
        return list(islice(self._window, place - self.base, None)) if place >= self.base else ()

    def fill(self) -> None:
        """A reader waits for entries that the store has."""
        self._paging.fill(self)

    def page(self, place: int) -> asyncio.Task[Sequence[Entry]]:
        """Loads the entries behind *place*, which is in front of the window."""
        return self._paging.page(self.key, place)

    def append(self, entries: Sequence[Entry]) -> Flow:
        """Never called: another process writes to it."""
        raise NotImplementedError

    async def room(self) -> None:
        """Never called."""
        raise NotImplementedError

    def _trim(self) -> None:
        while self.size > _WINDOW and len(self._window) > 1:
            size = size_of((self._window.popleft(),))
            self.size -= size
            self._log.size -= size
            self.base += 1


class MirrorReader(MemoryReader):
    """A reader of a stream of another process. While the store cannot be reached, it waits."""

    __slots__ = ("_closing", "_heartbeat", "_mirror")

    def __init__(self, stream: MirrorStream, place: int, *, at_end: bool, heartbeat: float | None) -> None:
        super().__init__(stream, place, at_end=at_end, heartbeat=heartbeat)
        self._mirror = stream
        self._heartbeat = heartbeat
        self._closing: asyncio.Future[None] | None = None
        """Ends its wait for a page."""

    def __anext__(self) -> Awaitable[Batch]:
        mirror = self._mirror
        waiting = super().__anext__()
        if mirror.last < mirror.known and self.waits:
            mirror.fill()
        return waiting

    async def aclose(self) -> None:
        """See `Reader.aclose`."""
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)
        await super().aclose()

    async def _take(self) -> Batch:
        while self.place >= self._mirror.base or self.at_end or self._closed:
            batch = await super()._take()
            if batch.entries or batch.end is not None:
                return batch  # otherwise its place has left the window in the meantime
        place = self.place
        entries = await self._page(place)
        # The store may be ahead of the mirror, which will give this reader what it does not have itself yet.
        entries = entries[: max(0, self._mirror.last - place)]
        self.place = place + len(entries)
        self.at_end = self._mirror.end is not None and self.place == self._mirror.last
        return Batch(place + 1, entries, self._mirror.end if self.at_end else None)

    async def _page(self, place: int) -> Sequence[Entry]:
        """The next entries from the store; none after `heartbeat` seconds in which it could not be reached."""
        self._closing = self._loop.create_future()
        wait = _SOONEST
        try:
            async with asyncio.timeout(self._heartbeat):
                while not self._closed:
                    page = self._mirror.page(place)
                    either: list[asyncio.Future[Any]] = [page, self._closing]
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                    if self._closed:
                        break
                    if page.cancelled():  # the log was closed
                        break
                    with suppress(LogUnavailable):
                        return page.result()
                    await asyncio.wait([self._closing], timeout=wait)
                    wait = min(wait * 2, _LATEST)
        except TimeoutError:
            return ()
        finally:
            self._closing = None
        raise StopAsyncIteration
