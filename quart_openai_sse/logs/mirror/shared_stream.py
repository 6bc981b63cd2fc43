"""A stream of this process that other processes read: which ones, and when its producer is told that none does."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Collection
from contextvars import Context

from quart_openai_sse.logs.entries import About
from quart_openai_sse.logs.kept import KeptStream
from quart_openai_sse.logs.memory_stream import MemoryReader, OwningLog

_AGAIN = 1.0  # seconds after which a store that could not be asked is asked again


class SharedStream(KeptStream):
    """A kept stream that other processes read too. *lease* is `MirrorLog.lease`."""

    def __init__(self, log: OwningLog, key: str, about: About, digest: str, *, lease: float) -> None:
        super().__init__(log, key, about, digest)
        self.elsewhere: set[str] = set()
        """The other processes that read it."""
        self._lease = lease
        self._left: Callable[[], object] | None = None
        self._linger = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._unread_since = 0.0
        """When the last reader of this process has left, by the loop's time."""
        self._doubted_until = 0.0
        """Until then the store may not know all processes that read it, because it has forgotten the stream."""
        self._joins = 0
        """How many processes have begun to read it."""

    @property
    @abstractmethod
    def behind(self) -> bool:
        """Whether there is something to write."""

    @abstractmethod
    def begin_to_write(self) -> None:
        """There is something to write at once: a process reads it now."""

    @abstractmethod
    def look_for_readers(self) -> None:
        """Asks the store whether processes read it, and calls `unread` with the answer."""

    def watch(
        self,
        *,
        stopped: Callable[[str], object],
        left: Callable[[], object],
        lost: Callable[[], object],
        linger: float,
    ) -> None:
        """See `Writer.watch`."""
        self._unread_since = asyncio.get_running_loop().time()
        self._left, self._linger = left, linger
        super().watch(stopped=stopped, left=self._without_readers, lost=lost, linger=linger)

    @property
    def joins(self) -> int:
        """A number that is another one after a process has begun to read it."""
        return self._joins

    def doubt(self) -> None:
        """The store has forgotten which processes read it: for the time of a lease each of them may come back."""
        self._doubted_until = asyncio.get_running_loop().time() + self._lease
        self._wait(self._lease)

    def joined(self, process: str) -> None:
        """A process has begun to read it."""
        self._joins += 1
        self._read_by(self.elsewhere | {process})

    def parted(self, process: str) -> None:
        """A process does not read it any more."""
        self._read_by(self.elsewhere - {process})

    def read_elsewhere(self, processes: Collection[str]) -> None:
        """These processes read it now as far as the store knows, and no others."""
        self._read_by({*processes, *self.elsewhere} if self._in_doubt else {*processes})

    def unread(self, processes: Collection[str] | None, left_ago: float) -> None:
        """What the store says of its readers: *processes* read it, the last one has left *left_ago* seconds ago.

        With `None` for *processes* the store could not be asked.
        """
        if self.end is not None or self.readers or self._left is None:
            return
        left_ago = min(left_ago, asyncio.get_running_loop().time() - self._unread_since)
        if processes is None or self._in_doubt:
            self._wait(_AGAIN)
        elif processes:
            self._read_by({*processes})
        elif left_ago < self._linger - 0.001:
            self.elsewhere = set()
            self._wait(self._linger - left_ago)
        else:
            self._left()

    def leave(self, reader: MemoryReader) -> None:
        """See `MemoryStream.leave`."""
        self._unread_since = asyncio.get_running_loop().time()
        super().leave(reader)

    def stop_waiting(self) -> None:
        """Its readers no longer matter, or there is one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _in_doubt(self) -> bool:
        return self._doubted_until > 0 and asyncio.get_running_loop().time() < self._doubted_until

    def _read_by(self, processes: set[str]) -> None:
        before, self.elsewhere = self.elsewhere, processes
        if processes:
            if not self._in_doubt:
                self.stop_waiting()
            if not before and self.behind:
                self.begin_to_write()
        elif before and not self.readers:
            self._wait(self._linger)

    def _without_readers(self) -> None:
        """No reader in this process has read it for `linger` seconds, or it is to be looked at again."""
        self._timer = None
        if self.end is None and not self.readers:
            if self._in_doubt:
                self._wait(self._doubted_until - asyncio.get_running_loop().time())
            elif self._doubted_until or not self.elsewhere:
                self._doubted_until = 0.0
                self.look_for_readers()

    def _wait(self, seconds: float) -> None:
        if self.end is None and self._left is not None:
            self.stop_waiting()
            self._timer = asyncio.get_running_loop().call_later(seconds, self._without_readers, context=Context())
