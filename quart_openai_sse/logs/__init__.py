"""The stream log, which keeps the entries of streams: its protocols, for logs, producers and readers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from quart_openai_sse.logs.entries import END_ID, Batch, End, Entry

__all__ = ["END_ID", "Batch", "End", "Entry", "Reader", "StreamLog", "Writer"]


class Writer(Protocol):
    """Held by a stream's producer."""

    def append(self, entries: Sequence[Entry]) -> bool:
        """Adds entries and wakes the readers; never waits. `False`: there is no `room` for more now.

        Raises `StreamTooLong`, and then adds none of them.
        """
        ...

    async def room(self) -> None:
        """Returns when what is unread is below the high-water mark; at once for a retained stream."""
        ...

    async def close(self, end: End) -> None:
        """Ends the stream; the first end wins."""
        ...

    def watch(self, *, stopped: Callable[[str], object], left: Callable[[], object], linger: float) -> None:
        """What is to be called, until the stream ends.

        *stopped*, with the reason, when somebody stops the stream, on whichever worker; *left* when nobody, on any
        worker, has been reading it for *linger* seconds.
        """
        ...


class Reader(Protocol):
    """Iterates over the batches of one stream, from its place to the end, which is in the last batch.

    With a heartbeat it also gives an empty batch when the stream is silent, after so long at the latest.
    A reader whose wait was cancelled can only be closed: it may have lost what came in that moment.
    """

    at_end: bool
    """Whether the reader has all there is, the end included, so that it iterates over nothing."""

    async def opened(self, timeout: float) -> None:
        """Returns at the stream's first output, or after *timeout* seconds; a heartbeat does not end it.

        Raises the end's error if the stream ended without output, and `StreamStopped` if it was stopped.
        """
        ...

    def __aiter__(self) -> AsyncIterator[Batch]: ...

    async def __anext__(self) -> Batch: ...

    async def aclose(self) -> None:
        """Leaves the stream. May be called twice."""
        ...


class StreamLog(Protocol):
    """Keeps streams by key. An id belongs to the log that made it; nothing else parses one."""

    async def create(self, key: str, *, digest: str, retain: bool) -> Writer | None:
        """Begins a stream; `None` if *key* exists, for the caller to attach to.

        Raises `KeyReused` if it exists with another *digest*. A stream that failed before its first entry does
        not hold its key: whoever asks again starts anew. Unless *retain*, only what is unread is kept.
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
