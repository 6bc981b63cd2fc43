"""The stream log, which keeps the entries of streams: the protocols of a log, of its writers and its readers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

from quart_openai_sse.logs.entries import END_ID, Batch, End, Entry

__all__ = ["END_ID", "Batch", "End", "Entry", "Reader", "StreamLog", "Writer"]


class Writer(Protocol):
    """The producer's end of a stream."""

    def append(self, entries: Sequence[Entry]) -> bool:
        """Adds entries and wakes the readers; never waits. `False`: there is no `room` for more now.

        Raises `StreamTooLong`, and then adds no entry.
        """
        ...

    async def room(self) -> None:
        """Returns when the unread bytes are below the high-water mark; at once for a retained stream."""
        ...

    async def close(self, end: End) -> None:
        """Ends the stream; the first end wins."""
        ...

    def watch(self, *, stopped: Callable[[str], object], left: Callable[[], object], linger: float) -> None:
        """Sets the functions to be called until the stream ends.

        *stopped* is called with the reason when the stream is stopped, on any worker; *left* when no reader, on any
        worker, has read it for *linger* seconds.
        """
        ...


class Reader(Protocol):
    """An async iterator over the batches of one stream. The last batch has the end.

    With a heartbeat there is also an empty batch after so many seconds of silence. A reader whose wait was cancelled
    can only be closed: it may have lost the entries of that moment. `__anext__` returns any awaitable, so use
    `asyncio.ensure_future`, and not `create_task`, to run it as a task.
    """

    at_end: bool
    """Whether the reader has had everything, the end included, so that there is no batch left."""

    async def opened(self, timeout: float) -> None:
        """Returns at the stream's first output, or after *timeout* seconds.

        Raises the error of a stream that ended without output, and `StreamStopped` if it was stopped.
        """
        ...

    def __aiter__(self) -> AsyncIterator[Batch]: ...

    def __anext__(self) -> Awaitable[Batch]: ...

    async def aclose(self) -> None:
        """Leaves the stream. May be called twice."""
        ...


class StreamLog(Protocol):
    """Keeps streams by key. The ids of entries belong to the log; no other code parses them."""

    async def create(self, key: str, *, digest: str, retain: bool) -> Writer | None:
        """Begins a stream. `None`: *key* exists, and the caller can attach to it.

        Raises `KeyReused` if it exists with another *digest*. A stream that failed before its first entry does not hold
        its key: the next request starts anew. Unless *retain*, only unread entries are kept.
        """
        ...

    async def read(self, key: str, *, after: str = "", heartbeat: float | None = None) -> Reader:
        """A reader from behind the entry *after*, or from the beginning.

        Raises `StreamNotFound`, `InvalidLastEventID` and `StreamExpired` here, before any iteration.
        """
        ...

    async def stop(self, key: str, reason: str) -> None:
        """Asks the producer to stop; nothing happens if the stream has ended. Raises `StreamNotFound`."""
        ...
