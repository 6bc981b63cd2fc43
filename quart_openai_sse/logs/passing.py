"""A stream of which only unread entries are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from quart_openai_sse.errors import StreamExpired, StreamTooLong
from quart_openai_sse.logs.entries import End, Entry
from quart_openai_sse.logs.memory_stream import MemoryReader, MemoryStream, OwningLog, size_of


class PassingStream(MemoryStream):
    """A stream that keeps only the entries that its one reader has not had."""

    retain = False

    def __init__(self, log: OwningLog, key: str, digest: str) -> None:
        super().__init__(log, key, digest)
        self._unread: list[Entry] = []
        self._reader: MemoryReader | None = None
        """The latest one. There are never two at a time."""
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
        self._log.refund(self.size)
        self.size = 0
        self._make_room()
        return entries

    def append(self, entries: Sequence[Entry]) -> bool:
        """See `Writer.append`."""
        if self.end is not None:
            return False
        reader = self._reader
        if reader is None or not reader.give(entries):
            if reader is not None and reader.open():
                self._unread += entries  # not counted: the reader takes them at once, whether the log is full or not
            else:
                self._keep(entries)
        self.last += len(entries)
        return self.size < self._log.high_water

    def enter(self, reader: MemoryReader) -> None:
        """See `MemoryStream.enter`."""
        super().enter(reader)
        self._reader = reader

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
