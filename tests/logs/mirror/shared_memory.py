"""What the stores in memory share: the streams and the processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from quart_openai_sse.logs.mirror import State

if TYPE_CHECKING:
    from tests.logs.mirror.faulty_process import FaultyProcess


class Stored(Struct, kw_only=True):
    """A stream in the memory."""

    state: State
    owner: str
    created: float
    left: float
    batches: list[bytes] = []
    request: bytes = b""
    ended: float | None = None
    expires: float = float("inf")
    """When its batches are no longer kept."""
    vanishes: float = float("inf")
    """When its tombstone is no longer kept."""
    holds_key: bool = True

    @property
    def evicted(self) -> bool:
        """Whether its batches were forgotten, and it was not."""
        return self.state.count > 0 and not self.batches


class SharedMemory:
    """What the stores of all processes share. *clock* returns seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, forgetful: bool = True) -> None:
        self.clock = clock
        self.forgetful = forgetful
        self.counts = True
        self.network: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)
        self.streams: dict[str, Stored] = {}
        self.leases: dict[str, float] = {}
        """When the lease of each registered process runs out."""
        self.lapses: list[tuple[str, float]] = []
        """The processes whose leases ran out, and when that was noticed."""
        self.stores: list[FaultyProcess] = []
        """Those that are open."""
        self.all_stores: list[FaultyProcess] = []
        self.calls: list[tuple[str, str]] = []

    def flush(self) -> None:
        """Forgets everything."""
        self.streams.clear()
        self.leases.clear()

    def forget(self, key: str) -> None:
        """Forgets a stream."""
        self.streams.pop(key, None)

    def forget_batches(self, key: str) -> None:
        """Forgets the batches of a stream."""
        if key in self.streams:
            self.streams[key].batches = []

    def lapse(self, process: str) -> None:
        """Lets the lease of a process run out."""
        if process in self.leases:
            self.leases[process] = self.clock()

    def may_be_dead(self, process: str, since: float) -> bool:
        """Whether the lease of *process* has run out since then."""
        if self.leases.get(process, float("inf")) <= self.clock():
            return True
        return any(each == process and noticed >= since for each, noticed in self.lapses)

    def look_up(self, key: str) -> Stored | None:
        """The stream at *key*, or its tombstone, or what is left of a running stream whose batches were evicted."""
        stream = self.streams.get(key)
        if stream is None:
            return None
        if stream.vanishes <= self.clock():
            del self.streams[key]
            return None
        if stream.ended is not None and stream.state.kept and (stream.expires <= self.clock() or stream.evicted):
            self.bury(stream)
            return self.look_up(key)
        return stream

    def look_up_whole(self, key: str) -> Stored | None:
        """The same, but a running stream whose batches were evicted is unknown: its writer has to write it again."""
        stream = self.look_up(key)
        return None if stream is None or (stream.ended is None and stream.evicted) else stream

    def writes(self, process: str, stream: Stored) -> bool:
        """Whether *process* has the writer of a running stream."""
        return stream.ended is None and process_of(stream.state.writer) == process

    def bury(self, stream: Stored) -> None:
        """Makes a tombstone of a stream that has ended."""
        stream.batches, stream.request = [], b""
        stream.state = structs.replace(stream.state, about=b"", end=stream.state.end[:1], decided=b"", kept=False)
        if not stream.holds_key:
            stream.vanishes = self.clock()

    def publish(self, key: str, message: bytes) -> None:
        """Delivers what was written to a stream."""
        for store in self.stores:
            if key in store.followed:
                store.deliver(key, message)

    def send(self, process: str, message: bytes) -> int:
        """Delivers *message* to one process or to all. Returns how many are reached."""
        reached = [store for store in self.stores if process in ("", store.process)]
        for store in reached:
            store.deliver("", message)
        return len(reached) if self.counts else -1


def process_of(writer: str) -> str:
    """The process in the name of a writer."""
    return writer.rpartition(".")[0]
