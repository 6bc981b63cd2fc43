"""The open readers of an engine: how many there may be, and how they end with their streams."""

from __future__ import annotations

import asyncio
from collections import Counter

from quart_openai_sse.config import Config
from quart_openai_sse.errors import TooManyReaders
from quart_openai_sse.limits.sharing import Sharing
from quart_openai_sse.logs import Reader
from quart_openai_sse.relay.running import StreamHandle
from quart_openai_sse.relay.shares import raise_refusal, reader_wish

_PATIENCE = 0.25  # seconds that a reader waits for the counts of the other workers; then it counts here alone


class Readers:
    """The readers that are open, and the limits of each stream and of each principal.

    The reader of a plain answer is not counted: it has one, and streams are limited themselves. With *sharing*, the
    limits hold for all workers.
    """

    def __init__(self, config: Config, sharing: Sharing | None = None) -> None:
        self._config = config
        self._sharing = sharing
        self._per_stream = config.max_readers_per_stream
        self._per_principal = config.max_readers_per_principal
        self._open: dict[Reader, StreamHandle] = {}
        self._counted: set[Reader] = set()
        self._of_streams: Counter[str] = Counter()
        self._of_owners: Counter[str] = Counter()
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, reader: Reader) -> bool:
        return reader in self._open

    def reserve(self, handle: StreamHandle) -> None:
        """Counts a reader that is about to be opened.

        Raises `TooManyReaders` if the stream, or its principal, has as many readers as it may.
        """
        if self._of_streams[handle.key] >= self._per_stream:
            raise TooManyReaders(f"The stream already has {self._per_stream} readers.")
        if handle.owner and self._of_owners[handle.owner] >= self._per_principal:
            raise TooManyReaders(f"You already have {self._per_principal} readers open.")
        self._of_streams[handle.key] += 1
        self._of_owners[handle.owner] += 1

    async def share(self, handle: StreamHandle) -> None:
        """Counts a reader that was reserved among those of all workers.

        Raises `TooManyReaders`; then it is not reserved any more.
        """
        if self._sharing is not None:
            wish = reader_wish(handle.id, self._config, anonymous=not handle.owner)
            try:
                raise_refusal(await self._sharing.take(_owner(handle), wish, patience=_PATIENCE))
            except BaseException:
                self._forget(handle)
                raise

    def give_back(self, handle: StreamHandle) -> None:
        """Undoes `reserve` and `share`."""
        self._forget(handle)
        if self._sharing is not None:
            self._sharing.give_back(_owner(handle), reader=handle.id)

    def _forget(self, handle: StreamHandle) -> None:
        for counter, key in ((self._of_streams, handle.key), (self._of_owners, handle.owner)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]

    def add(self, reader: Reader, handle: StreamHandle, *, counted: bool = True) -> None:
        """Adds an open reader; *counted*: for which a place was reserved."""
        self._open[reader] = handle
        self._none.clear()
        if counted:
            self._counted.add(reader)

    async def leave(self, reader: Reader) -> None:
        """Closes a reader. May be called twice."""
        if (handle := self._open.pop(reader, None)) is not None:
            if reader in self._counted:
                self._counted.discard(reader)
                self.give_back(handle)
            if not self._open:
                self._none.set()
        await reader.aclose()

    async def cut(self, handle: StreamHandle) -> None:
        """Closes the readers of a stream whose end is not in the log: each of them ends without the end."""
        for reader in [reader for reader, read in self._open.items() if read.key == handle.key]:
            await self.leave(reader)

    async def wait_for_none(self, timeout: float) -> bool:
        """Returns `True` when no reader is open, or `False` after *timeout* seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._none.wait()
        except TimeoutError:
            return False
        return True


def _owner(handle: StreamHandle) -> str:
    """The owner's key, which `StreamHandle.owner` does not have for anonymous callers."""
    return handle.key.partition(":")[0]
