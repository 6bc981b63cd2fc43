"""A stream of which only unread entries are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from quart_openai_sse.errors import StreamExpired, StreamTooLong
from quart_openai_sse.flow import ENOUGH, MORE, PAUSE, Flow
from quart_openai_sse.logs.entries import About, Batch, End, Entry
from quart_openai_sse.logs.memory_stream import MemoryStream, OwningLog, size_of


class PassingStream(MemoryStream):
    """A stream that keeps only the entries that its one reader has not had."""

    retain = False

    def __init__(self, log: OwningLog, key: str, about: About, digest: str) -> None:
        super().__init__(log, key, about, digest)
        self._unread: list[Entry] = []
        self._room: asyncio.Future[None] | None = None
        """What the producer waits for."""

    def place(self, after: str) -> int:
        """See `MemoryStream.place`. There is no second reader: a slow one would hold back the first."""
        place = self._place(after)
        if self.readers or place or self.last > len(self._unread):
            raise StreamExpired("This stream is not kept: only the request that started it can read it.")
        return place

    def take(self, place: int) -> Sequence[Entry]:
        """See `MemoryStream.take`. The stream no longer holds them."""
        entries, self._unread = self._unread, []
        self._log.size -= self.size
        self.size = 0
        self._make_room()
        return entries

    def append(self, entries: Sequence[Entry]) -> Flow:
        """See `Writer.append`."""
        if self.end is not None:
            return ENOUGH
        batch = Batch(self.last + 1, entries)
        for reader in self.readers:  # at most one
            if reader.give(batch):
                break
            if reader.open():
                self._unread += entries  # not counted: the reader takes them at once, whether the log is full or not
                break
        else:
            self._keep(entries)
        self.last += len(entries)
        return MORE if self.size < self._log.high_water else PAUSE

    async def room(self) -> None:
        """See `Writer.room`."""
        while self.size >= self._log.high_water and self.end is None:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def close(self, end: End) -> None:
        """See `Writer.close`."""
        await super().close(end)
        self._make_room()

    def _keep(self, entries: Sequence[Entry]) -> None:
        size = size_of(entries)
        if self.size + size > self._log.max_bytes:
            raise StreamTooLong("The stream exceeded its limit of bytes.")
        self._log.charge(size)
        self.size += size
        self._unread += entries

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
