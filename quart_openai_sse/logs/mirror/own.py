"""A stream that is produced in this process, and how much of it is in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from quart_openai_sse.errors import ErrorValue, LogUnavailable, ProducerLost
from quart_openai_sse.flow import Flow
from quart_openai_sse.logs.entries import About, End, Entry
from quart_openai_sse.logs.memory_stream import OwningLog
from quart_openai_sse.logs.mirror.shared_stream import SharedStream

LOST = End("failed", "producer_lost", ErrorValue.of(ProducerLost("The process that produced the stream has died.")))
"""The end of a stream whose process has died, or was taken for dead."""

_DECIDING = 1.0  # seconds that `decide` waits for the store


class Mirroring(Protocol):
    """The part of a `MirrorLog` that its own streams need."""

    patience: float
    """Seconds that a writer waits for the store."""

    lease: float
    """Seconds after which every process that lives has come back to a store that had forgotten everything."""

    def mark(self, stream: OwnStream) -> None:
        """There is something to write."""
        ...

    def let_go(self, stream: OwnStream) -> None:
        """Another process has ended the stream: new readers get what is in the store."""
        ...

    def look_for_readers(self, stream: OwnStream) -> None:
        """Asks the store whether processes read the stream, and calls `SharedStream.unread` with the answer."""
        ...


class OwnStream(SharedStream):
    """A kept stream whose entries are also written to the store, a moment later."""

    def __init__(self, log: OwningLog, key: str, about: About, digest: str, *, mirroring: Mirroring) -> None:
        super().__init__(log, key, about, digest, lease=mirroring.lease)
        self.writer = ""
        """Its name in the store."""
        self.created = False
        """Whether it is in the store."""
        self.creating = False
        """Whether the first try to store it has not been answered yet."""
        self.refused = False
        """Whether that try has failed."""
        self.written = 0
        """The number of entries in the store."""
        self.marked = False
        """Whether it waits to be written."""
        self.request = b""
        self.is_kept = False
        """Whether its request is in the store."""
        self.decided: End | None = None
        self.is_decided = False
        """Whether its decided end is in the store."""
        self.is_whole = False
        """Whether its end is in the store."""
        self.lost = False
        """Whether another process has taken it over."""
        self.unstorable = False
        """Whether it cannot be stored: other processes are told that it has failed."""
        self.hurried = False
        """Whether it is to be written at once, because another process has asked for it."""
        self._mirroring = mirroring
        self._changed: asyncio.Event | None = None
        """What waits for a change, if anything does."""
        self._lost: Callable[[], object] | None = None

    @property
    def urgent(self) -> bool:
        """Whether it is to be written at once."""
        return (
            not self.written
            or bool(self.elsewhere)
            or self.end is not None
            or (self.decided is not None and not self.is_decided)
            or self.hurried
        )

    @property
    def behind(self) -> bool:
        """Whether there is something to write."""
        return (
            not self.lost
            and not self.unstorable
            and not self.is_whole
            and (
                not self.created
                or self.written < self.last
                or (self.end is not None and not self.is_whole)
                or (self.decided is not None and not self.is_decided)
                or (self.request != b"" and not self.is_kept)
            )
        )

    @property
    def unwritten_size(self) -> int:
        """The bytes of the entries that are not in the store."""
        return self._entries.size_behind(self.written)

    # The writer -------------------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> Flow:
        """See `Writer.append`."""
        flow = super().append(entries)
        if not self.marked:
            self._mirroring.mark(self)
        return flow

    async def stored(self) -> None:
        """See `Writer.stored`."""
        await self._until(
            lambda: self.created or self.lost or self.refused or self.unstorable, self._mirroring.patience
        )
        if not self.created and not self.lost:
            raise LogUnavailable("The stream could not be stored.")

    def keep(self, request: bytes) -> None:
        """See `Writer.keep`."""
        self.request = request
        if not self.creating:  # otherwise it is written afterwards
            self._mirroring.mark(self)

    async def decide(self, end: End) -> bool:
        """See `Writer.decide`."""
        if self.end is None and not self.lost:
            self.decided = end
            self._mirroring.mark(self)
            await self._until(lambda: self.is_decided or self.lost or self.unstorable, _DECIDING)
        return not self.lost

    async def close(self, end: End) -> None:
        """See `Writer.close`. Readers in this process get the end at once."""
        if self.end is None:
            await super().close(end)
            self.stop_waiting()
            self._mirroring.mark(self)
        await self._until(lambda: self.is_whole or self.lost or self.unstorable, self._mirroring.patience)
        if not self.is_whole and not self.lost:
            raise LogUnavailable("The end of the stream could not be stored yet.")

    def watch(
        self,
        *,
        stopped: Callable[[str], object],
        left: Callable[[], object],
        lost: Callable[[], object],
        linger: float,
    ) -> None:
        """See `Writer.watch`."""
        if self.lost:
            lost()
            return
        self._lost = lost
        super().watch(stopped=stopped, left=left, lost=lost, linger=linger)

    async def written_out(self, patience: float) -> None:
        """Returns when all that it has now is in the store, or after *patience* seconds."""
        last = self.last
        await self._until(lambda: not self.behind or (self.end is None and self.written >= last > 0), patience)

    async def abandon(self) -> None:
        """Ends it as lost: its log is being closed."""
        if self.end is None:
            await super().close(LOST)
            self.stop_waiting()
            self._mirroring.mark(self)
            if self._lost is not None:
                self._lost()

    def changed(self) -> None:
        """Something has been written, or the stream was lost."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def forgotten(self) -> None:
        """The store has forgotten it: it is stored again, and the processes that read it have to come back."""
        self.created = self.is_kept = self.is_decided = self.is_whole = False
        self.written = 0
        self.doubt()
        self._mirroring.mark(self)

    async def lose(self) -> None:
        """Another process has ended it, or will: nothing that it appends from now on is written."""
        if self.lost:
            return
        self.lost = True
        self.stop_waiting()
        if self.end is None:
            await super().close(self.decided if self.decided is not None and self.is_decided else LOST)
        self._mirroring.let_go(self)
        self.changed()
        if self._lost is not None:
            self._lost()

    def begin_to_write(self) -> None:
        """See `SharedStream.begin_to_write`."""
        self._mirroring.mark(self)

    def look_for_readers(self) -> None:
        """See `SharedStream.look_for_readers`."""
        self._mirroring.look_for_readers(self)

    async def _until(self, reached: Callable[[], bool], patience: float) -> None:
        """Returns when something is *reached*, or after *patience* seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while not reached():
                    self._changed = self._changed or asyncio.Event()
                    await self._changed.wait()
