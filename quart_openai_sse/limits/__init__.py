"""The limits of a principal, and the protocol of counts that several processes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from msgspec import Struct

Refusal = Literal["", "streams", "stream_readers", "readers", "tokens"]
"""The limit that a wish would exceed; "": it is granted."""


class Wish(Struct, frozen=True, kw_only=True):
    """What one start or one reader needs, all of it or nothing. Limits of -1 are none."""

    streams: int = 0
    most_streams: int = -1
    stream: str = ""
    """The id of the stream that it reads; "": it reads none."""
    most_stream_readers: int = -1
    most_readers: int = -1
    prompt: int = 0
    tokens: int = 0
    """The tokens to be reserved, the prompt included; 0: tokens are not limited, or nothing is to be reserved."""
    instead: int = 0
    """The tokens that are reserved already, which the new ones replace."""


class Holding(Struct, frozen=True, kw_only=True):
    """All that one process holds of an owner's limits, and what it wishes in addition.

    Whole amounts are told, never changes: telling them twice changes nothing, and a store that has forgotten them knows
    them again.
    """

    owner: str
    number: int
    """Counts the holdings that this process tells. The store ignores one that arrives after a later one."""
    streams: int = 0
    readers: int = 0
    reading: Mapping[str, int] = {}
    """The readers of single streams, by their ids: those that have changed, and those that wishes name."""
    reserved: int = 0
    spent: int = 0
    """The tokens that this process has spent in the window."""
    window: int = 0
    """The end of the window as the store has told it, in Unix milliseconds; 0: not known yet."""
    remaining: int = 0
    """Milliseconds until the window of *spent* ends, by this process's clock: for a store that knows no window."""
    most_tokens: int = -1
    dead: Sequence[str] = ()
    """Processes that hold nothing any more, since their leases have run out."""
    wishes: Sequence[Wish] = ()


class Others(Struct, frozen=True, kw_only=True):
    """The answer to a `Holding`: which wishes are granted, in their order, and what the other processes have."""

    refusals: Sequence[Refusal]
    spent: int = 0
    reserved: int = 0
    window: int = 0
    """The end of the window in Unix milliseconds; 0: nobody has spent anything."""
    remaining: int = 0
    """Milliseconds until the window ends."""
    holders: frozenset[str] = frozenset()
    """The other processes that hold something. Some of them may be dead, if the store cannot know it."""


class Leases(Struct, frozen=True, kw_only=True):
    """What `SharedCounts.renew` has found."""

    known: bool
    """Whether the lease of this process still ran. If not, the store may have forgotten what the process holds."""
    alive: frozenset[str]
    """The processes whose leases run, this one included."""


class SharedCounts(Protocol):
    """The store that counts for all workers: streams, readers and tokens of each owner.

    An object belongs to one process and one event loop. Every method may raise any exception while the store cannot be
    reached, and may be cancelled. What it was to do may be done nevertheless, so it is called again.
    """

    lease: float
    """Seconds after which what a process holds is free again, unless the process renews its lease."""

    async def renew(self) -> Leases:
        """Registers this process, or renews its lease."""
        ...

    async def count(self, holdings: Sequence[Holding]) -> Sequence[Others]:
        """Tells what this process holds, of several owners in one round trip, and takes what is wished.

        Checking and taking are one step of the store, for all workers.
        """
        ...

    async def aclose(self) -> None:
        """Gives back all that this process holds, except for the tokens that it has spent. Never raises."""
        ...
