"""A stream that is kept whole, for any number of readers."""

from __future__ import annotations

from collections.abc import Sequence

from quart_openai_sse.errors import StreamTooLong
from quart_openai_sse.flow import ENOUGH, MORE, Flow
from quart_openai_sse.logs.compact import CompactEntries, Run
from quart_openai_sse.logs.entries import About, Batch, Entry
from quart_openai_sse.logs.memory_stream import MemoryStream, OwningLog, size_of

_BATCH_BYTES = 256 << 10  # of one batch for a reader that is far behind


class KeptStream(MemoryStream):
    """A stream whose entries are kept, for any number of readers."""

    retain = True

    def __init__(self, log: OwningLog, key: str, about: About, digest: str) -> None:
        super().__init__(log, key, about, digest)
        self._entries = CompactEntries()

    def place(self, after: str) -> int:
        """See `MemoryStream.place`."""
        return self._place(after)

    def take(self, place: int) -> Sequence[Entry]:
        """See `MemoryStream.take`."""
        return self._entries.batch(place, _BATCH_BYTES)

    def runs(self, place: int) -> Sequence[Run] | None:
        """The same entries as they are kept; `None` if there are others than plain chunks among them."""
        return self._entries.runs(place, _BATCH_BYTES)

    def append(self, entries: Sequence[Entry]) -> Flow:
        """See `Writer.append`."""
        if self.end is not None:
            return ENOUGH
        size = size_of(entries)
        if self.size + size > self._log.max_bytes or self.last + len(entries) > self._log.max_entries:
            raise StreamTooLong("The stream exceeded its limit of bytes or entries.")
        self._log.charge(size)
        self.size += size
        self._entries.extend(entries)
        # Every reader that waits has had all entries before these.
        batch = Batch(self.last + 1, entries, encoded={} if len(self.readers) > 1 else None)
        for reader in self.readers:
            if not reader.give(batch):
                reader.open()
        self.last += len(entries)
        return MORE

    async def room(self) -> None:
        """See `Writer.room`."""
