"""The store behind a log that several processes share: its protocol, and the values that go into it and come out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol

from msgspec import Struct

Hear = Callable[[str, bytes], object]
"""Called with each message from the store, in order.

It is given the key of a stream that is followed and a batch or an end that was written to it; or "" and a message that
`send` has sent. An end is told from a batch by its first byte, see `wire`.
"""


class NewStream(Struct, frozen=True, kw_only=True):
    """A stream that `Store.create` begins."""

    writer: str
    """Names the writer, and no other one ever: the process, a ".", and a number."""
    digest: str
    about: bytes
    owner: str
    """Whose streams `Store.find` returns it with; "": nobody's."""
    created: float
    """The order of `Store.find`: Unix time."""
    life: float
    """Seconds after which the store may forget a stream that nobody writes to any more."""


class State(Struct, frozen=True, kw_only=True):
    """What a store knows of a stream besides its batches."""

    writer: str
    digest: str
    count: int
    """The number of its entries."""
    about: bytes = b""
    """Empty once it is no longer kept."""
    end: bytes = b""
    """Empty while it runs."""
    decided: bytes = b""
    """The end that its writer has decided, but not written: `on_end` runs."""
    stop: str = ""
    """The reason with which it is to be stopped."""
    attempt: int = 1
    """How many writers it has had."""
    readers: tuple[str, ...] = ()
    """The processes that read it, without that of its writer."""
    kept: bool = True
    """Whether its batches can still be read. If not, the state is a tombstone: a digest that holds the key."""
    ended_ago: float = 0.0
    """Seconds since its end was written, by the store's clock."""
    left_ago: float = 0.0
    """Seconds since the last of `readers` left, or since its beginning."""


class Write(Struct, frozen=True, kw_only=True):
    """What a writer adds to its stream: a batch, a decided end, an end, a request; or several of them at once."""

    key: str
    writer: str
    place: int
    """The number of entries that the store has before this write."""
    count: int
    """The number of entries that it has afterwards."""
    batch: bytes = b""
    """Appended, and sent to the processes that follow the stream. See `wire`."""
    decided: bytes = b""
    end: bytes = b""
    request: bytes = b""
    """What another process needs to call `on_end`; kept until the end is written."""
    retention: float = 0.0
    """With an end: seconds for which the batches are kept from now on."""
    tombstone: float = 0.0
    """With an end: further seconds for which the state is kept as a tombstone."""
    holds_key: bool = True
    """With an end: whether it holds its key. A stream that failed without an entry does not."""


class Written(Struct, frozen=True, kw_only=True):
    """What became of a `Write`.

    `done`: it is in the store, now or since an earlier try. `moved`: nothing was written, the store has `count` entries
    and not `place`. `lost`: the stream has another writer, or an end that another one has written. `gone`: the store
    has forgotten the stream, or its batches.
    """

    result: Literal["done", "moved", "lost", "gone"]
    count: int = 0
    stop: str = ""
    readers: tuple[str, ...] = ()


class Page(Struct, frozen=True, kw_only=True):
    """A part of a stream."""

    state: State
    batches: Sequence[bytes]


class Processes(Struct, frozen=True, kw_only=True):
    """What `Store.renew` has found."""

    known: bool
    """Whether the store still knew this process. If not, it may have forgotten streams too, or another process may have
    taken this one for dead."""
    alive: frozenset[str]
    """The processes that have renewed their leases in time, this one included."""
    overdue: frozenset[str]
    """The registered processes that have not."""


class Store(Protocol):
    """The outside thing behind a `MirrorLog`: Redis, or an SQLite file.

    Every method may raise `LogUnavailable`, within some seconds. What it was to do may be done nevertheless, so every
    method may be called again with the same arguments, and then does nothing a second time. What it stores is opaque
    bytes, but for the header of a batch. A store is used by one event loop.
    """

    forgetful: bool
    """Whether it can lose streams whose writers live: by a restart, an eviction, a lost failover."""

    async def open(self, process: str, hear: Hear, again: Callable[[], object]) -> None:
        """Connects as *process*, which the store does not know before `renew`, and passes messages to *hear*.

        *again* is called after messages may have been missed. Raises `ConfigurationError` if the store can never be
        used: it is too old, read-only, wrongly addressed, refuses the password. Can be called again after it raised,
        and after `aclose`.
        """
        ...

    async def aclose(self) -> None:
        """Disconnects, and forgets the process unless streams run with a writer of it: others have to end them.

        Never raises, and takes a second at most.
        """
        ...

    async def ready(self) -> bool:
        """Whether the store can be read and written now. Never raises."""
        ...

    # Streams ----------------------------------------------------------------------------------------------------------

    async def create(self, key: str, stream: NewStream) -> State | None:
        """Begins a stream; `None`: done. Otherwise the state of the stream that holds *key*.

        A stream that does not hold its key is replaced, with all that belongs to it. If the stream's writer is that of
        *stream*, nothing changes and the result is `None`.
        """
        ...

    async def write(self, writes: Sequence[Write]) -> Sequence[Written]:
        """Adds to several streams in one round trip. The result has one item for each."""
        ...

    async def load(self, key: str, place: int, size: int, *, reader: str = "", tell: bytes = b"") -> Page | None:
        """The state, and the batches behind *place*, of *size* bytes or a little more; `None`: the stream is unknown.

        It has at least one batch if there is one. A batch may begin before *place*. With *reader* this process is
        counted among the stream's readers from now on, unless it has ended, and *tell* is sent to the writer's process.
        """
        ...

    async def leave(self, key: str, reader: str, *, tell: bytes) -> None:
        """Takes a process out of a stream's readers, and sends *tell* to the writer's process."""
        ...

    async def states(self, keys: Sequence[str]) -> Sequence[State | None]:
        """The states of many streams, without their `about`."""
        ...

    async def stop(self, key: str, reason: str, *, tell: bytes) -> State | None:
        """Asks a running stream to stop, unless that was done, and sends *tell* to the writer's process.

        Returns its state before; `None`: unknown.
        """
        ...

    async def claim(self, key: str, dead: str, writer: str) -> State | None:
        """Gives a running stream of a writer of the process *dead* to *writer*. One of several callers gets it.

        Returns its new state, with the next `attempt`; `None` if it is not to be had. The same *writer* gets it again.
        """
        ...

    async def request(self, key: str) -> bytes:
        """The request that was written for a running stream, or nothing."""
        ...

    async def find(self, owner: str) -> Sequence[tuple[str, State]]:
        """The keys and states of the streams of *owner* that are kept, newest first."""
        ...

    async def erase(self, key: str) -> None:
        """Removes everything of a stream that has ended but its tombstone."""
        ...

    # Processes and messages -------------------------------------------------------------------------------------------

    async def renew(self, lease: float) -> Processes:
        """Registers this process, or renews its lease of so many seconds, and looks at the others."""
        ...

    async def streams_of(self, process: str) -> Sequence[str]:
        """The keys of the streams that run with writers of *process*. A few more are possible, but none is missing."""
        ...

    async def bury(self, process: str) -> None:
        """Forgets a process whose streams have all been claimed."""
        ...

    async def follow(self, key: str) -> None:
        """Has *hear* called with everything that is written to a stream after this returns."""
        ...

    async def unfollow(self, keys: Collection[str]) -> None:
        """Undoes `follow`. Never raises."""
        ...

    async def send(self, process: str, message: bytes) -> int:
        """Sends *message* to a process, or with "" to all of them, this one included.

        Returns how many get it at least, or -1 if the store does not know.
        """
        ...
