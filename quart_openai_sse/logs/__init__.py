"""The stream log, which keeps the entries of streams: the protocols of a log, of its writers and its readers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from quart_openai_sse.flow import Flow
from quart_openai_sse.logs.entries import END_ID, About, Batch, End, Entry, Kind

__all__ = [
    "END_ID",
    "About",
    "Batch",
    "End",
    "Entry",
    "Kind",
    "LostStream",
    "OnLost",
    "Reader",
    "StreamLog",
    "Writer",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LostStream:
    """A stream whose process has died: another process ends it, and calls the app's hooks."""

    about: About
    request: bytes
    """What its process has given to `Writer.keep`, or nothing."""
    end: End
    """The end that it will have: the one that its process had decided, otherwise `producer_lost`."""
    attempt: int
    """2 for the first process that takes it over, and one more for each that dies in doing so."""
    batches: AsyncIterator[Batch]
    """Its entries. Raises `LogUnavailable`."""


OnLost = Callable[[LostStream], Awaitable[None]]
"""Called before the end of a lost stream is written."""


class Writer(Protocol):
    """The producer's end of a stream."""

    async def stored(self) -> None:
        """Returns when every process can find the stream.

        Raises `LogUnavailable` if it cannot be stored now, and then its producer is to be stopped and it is to be
        closed: nobody else knows of it.
        """
        ...

    def keep(self, request: bytes) -> None:
        """Stores what another process needs to call the app's hooks if this one dies. To be called once, early."""
        ...

    async def decide(self, end: End) -> bool:
        """Decides the end before the app's hooks are called with it. If the process then dies, the stream has this end.

        `False`: another process has ended the stream, and calls the hooks. Waits for a store that does not answer for
        a second at most, and then returns `True`.
        """
        ...

    def append(self, entries: Sequence[Entry]) -> Flow:
        """Adds entries and wakes the readers; never waits.

        `PAUSE`: await `room` before the next; `ENOUGH`: the stream has ended, and nothing was added. Raises
        `StreamTooLong`, or `LogUnavailable` from a log that writes at once, and then adds no entry.
        """
        ...

    async def room(self) -> None:
        """Returns when the unread bytes are below the high-water mark; at once for a kept stream."""
        ...

    async def close(self, end: End) -> None:
        """Ends the stream; the first end wins.

        Raises `LogUnavailable` if the end cannot be stored now. The log then tries again by itself: until an end is
        stored, readers in other processes wait for it.
        """
        ...

    def watch(
        self,
        *,
        stopped: Callable[[str], object],
        left: Callable[[], object],
        lost: Callable[[], object],
        linger: float,
    ) -> None:
        """Sets the functions to be called until the stream ends.

        *stopped* is called with the reason when the stream is stopped, on any worker; *left* when no reader, on any
        worker, has read it for *linger* seconds; *lost* when another process has ended the stream, because it took
        this one for dead: nothing that is appended from then on reaches a reader.
        """
        ...


class Reader(Protocol):
    """An async iterator over the batches of one stream. The last batch has the end.

    With a heartbeat there is also an empty batch after so many seconds of silence. A reader whose wait was cancelled
    can only be closed: it may have lost the entries of that moment. A reader far behind gets batches of about 256 KiB.
    While the store cannot be reached, a reader waits, or raises `LogUnavailable`.

    `__anext__` returns any awaitable, so use `asyncio.ensure_future`, and not `create_task`, to run it as a task.
    """

    @property
    def about(self) -> About:
        """What the log knows of the stream besides its entries."""
        ...

    @property
    def at_end(self) -> bool:
        """Whether the reader has had everything, the end included, so that there is no batch left."""
        ...

    async def opened(self, timeout: float) -> None:
        """Returns at the stream's first output, or after *timeout* seconds.

        Raises the error of a stream that ended without output, and `StreamStopped` if it was stopped.
        """
        ...

    def __aiter__(self) -> AsyncIterator[Batch]: ...

    def __anext__(self) -> Awaitable[Batch]: ...

    async def aclose(self) -> None:
        """Leaves the stream. May be called twice, and while another task waits for the next batch.

        That task's iteration then ends without the stream's end, and a wait in `opened` returns. A closed reader has
        no more batches: a task that was busy when it was closed does not wait for one.
        """
        ...


class StreamLog(Protocol):
    """Keeps streams by key. The ids of entries belong to the log; no other code parses them.

    `open` is awaited before the first use and `aclose` after the last; either may be called several times, and `open`
    again after `aclose`. Every other method raises `LogUnavailable` while the store behind the log cannot be reached.
    """

    @property
    def size(self) -> int:
        """The bytes of streams that it holds in the memory of this process, which are a part of `max_memory`."""
        ...

    @property
    def shared(self) -> bool:
        """Whether other processes see its streams."""
        ...

    async def open(self) -> None:
        """Makes the log usable: connects, creates tables. Raises `LogUnavailable`, and then may be called again.

        Raises `ConfigurationError` if it cannot be used at all: the password is wrong, the server too old.
        """
        ...

    async def ready(self) -> bool:
        """Whether the log can be used now, for a readiness probe."""
        ...

    async def aclose(self) -> None:
        """Frees what the log holds outside its process's memory. Streams of other processes go on."""
        ...

    async def create(self, key: str, *, about: About, digest: str, retain: bool) -> Writer | None:
        """Begins a stream. `None`: *key* exists, and the caller can attach to it.

        A *digest* of "" says that no other request can name the key, because it is random. Then the log may return
        before it has stored the stream, see `Writer.stored`.

        Raises `KeyReused` if it exists with another *digest*. A stream that failed before its first entry does not hold
        its key: the next request starts anew. With *retain* the stream is kept whole, for any number of readers, until
        some time after its end; without, it is passing: it has one reader, and only unread entries are kept.
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

    async def tail(self, key: str) -> tuple[str, bool]:
        """The id of the stream's last entry ("" before the first), and whether the stream has ended. Never waits.

        Raises `StreamNotFound` and `StreamExpired`.
        """
        ...

    async def find(self, owner: str, *, thread: str | None = None, ended_within: float = 0.0) -> list[About]:
        """The kept streams of *owner* that run, on any worker, and those that ended in the last *ended_within* seconds.

        The newest come first. With a *thread* only the streams of this thread; "" is the streams without one. There
        are none for the owner "", since anonymous callers are not told apart.
        """
        ...

    async def erase(self, key: str) -> None:
        """Removes a stream that has ended, on all workers: it has expired from now on, and its readers end.

        Nothing happens if it runs or has expired. Raises `StreamNotFound`.
        """
        ...

    async def forget(self, owner: str) -> None:
        """Stops the streams of *owner*, waits for the ends of those that are kept, and erases them on all workers.

        Raises `LogUnavailable` also if one of them does not end within some seconds. The others are erased then.
        """
        ...

    def on_lost(self, call: OnLost) -> None:
        """Has *call* called for each stream of a dead process that this process ends. It must limit its time itself."""
        ...
