"""A store in memory, with faults that a test switches on.

Two stores on one `SharedMemory` are the stores of two processes:

    memory = SharedMemory()
    one, two = MirrorLog(MemoryStore(memory), ...), MirrorLog(MemoryStore(memory), ...)

Each method of a store waits for `memory.network` before and after it does its work, which is one turn of the loop
unless a test sets a function of its own. Messages are delivered in order by `call_soon`. Time is `memory.clock`: with a
clock that the test sets, nothing expires until the test says so. The real time of the processes' own timers goes on.

Faults of one store, that is, of one process:

* `store.disconnect()`: every method raises `LogUnavailable`, and messages are missed. `disconnect(applied=True)`:
  the methods raise after they have done their work. `store.connect()` ends either and calls `again`.
* `store.faults`: "before" or "after" for each of the next calls, for example `store.faults += ["after", "before"]`;
  "" lets a call pass.
* `store.deaf = True`: messages are missed, but the methods work. A store that was deaf calls `again` at some time:
  `store.connect()`. `store.miss(2)`: the next two messages are missed, and nothing calls `again`.
* `store.freeze()`: the process is stopped. Its calls wait, its lease is not renewed, messages wait, until `thaw()`. A
  process that is never thawed was killed.
* `memory.lapse(process)`: its lease runs out now. It is overdue until it renews, so freeze it first.

Faults of the memory, which all processes see:

* `memory.flush()`: everything is forgotten, like FLUSHDB or a restart. Subscriptions stay.
* `memory.forget(key)`: a stream is forgotten, like an eviction. `memory.forget_batches(key)`: only its batches.
* `memory.counts = False`: `send` does not know how many it reaches, as in a cluster.

`memory.calls` has the name of each call and its process, in the order in which they were made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

from msgspec import structs

from quart_openai_sse.logs.mirror import Hear, NewStream, Page, Processes, State, Write, Written
from quart_openai_sse.logs.mirror.wire import HEADER
from tests.logs.mirror.faulty_process import FaultyProcess, remote
from tests.logs.mirror.shared_memory import SharedMemory, Stored, process_of

__all__ = ["MemoryStore", "SharedMemory"]


class MemoryStore(FaultyProcess):
    """See `Store`, and above."""

    def __init__(self, memory: SharedMemory) -> None:
        super().__init__()
        self.memory = memory
        self.calls = memory.calls
        memory.all_stores.append(self)
        self.forgetful = memory.forgetful

    async def network(self) -> None:
        await self.memory.network()

    async def open(self, process: str, hear: Hear, again: Callable[[], object]) -> None:
        self.process, self._hear, self._again = process, hear, again
        await self._open()

    @remote
    async def _open(self) -> None:
        if not self.is_open:
            self.is_open, self.followed = True, set()
            self.memory.stores.append(self)

    async def aclose(self) -> None:
        if self.is_open:
            self.is_open = False
            self.memory.stores.remove(self)
            runs = any(self.memory.writes(self.process, stream) for stream in self.memory.streams.values())
            if not self.down and self.thawed.is_set() and not runs:
                self.memory.leases.pop(self.process, None)

    async def ready(self) -> bool:
        return not self.down and self.is_open

    @remote
    async def create(self, key: str, stream: NewStream) -> State | None:
        found = self.memory.look_up(key)
        mine = found is not None and found.state.writer == stream.writer
        if found is not None and mine and not found.evicted:
            return None
        if found is not None and not mine and found.holds_key:
            return self._state(found)
        state = State(writer=stream.writer, digest=stream.digest, count=0, about=stream.about)
        if found is not None and mine:
            before = found.state
            state = structs.replace(state, stop=before.stop, attempt=before.attempt, readers=before.readers)
        left = self.memory.clock()
        self.memory.streams[key] = Stored(state=state, owner=stream.owner, created=stream.created, left=left)
        return None

    @remote
    async def write(self, writes: Sequence[Write]) -> Sequence[Written]:
        return [self._write(write) for write in writes]

    def _write(self, write: Write) -> Written:
        stream = self.memory.look_up_whole(write.key)
        if stream is None:
            return Written(result="gone")
        result = self._add(stream, write)
        state = self._state(stream)
        return Written(result=result, count=state.count, stop=state.stop, readers=state.readers)

    def _add(self, stream: Stored, write: Write) -> Literal["done", "moved", "lost", "gone"]:
        state = stream.state
        repeated = write.count == state.count
        if state.writer != write.writer:
            return "lost"
        if state.end:
            return "done" if repeated and write.end in (b"", state.end) else "lost"
        if write.place != state.count and not repeated:
            return "moved"
        changes: dict[str, Any] = {}
        if write.batch and not repeated:
            stream.batches = [*stream.batches, write.batch]
            changes["count"] = write.count
            self.memory.publish(write.key, write.batch)
        if write.decided and not state.decided:
            changes["decided"] = write.decided
        if write.request:
            stream.request = write.request
        if write.end:
            changes |= {"end": write.end, "readers": ()}
            now = self.memory.clock()
            stream.ended, stream.request, stream.holds_key = now, b"", write.holds_key
            stream.expires = now + write.retention
            stream.vanishes = stream.expires + (write.tombstone if write.holds_key else 0.0)
            self.memory.publish(write.key, write.end)
        stream.state = structs.replace(state, **changes)
        return "done"

    @remote
    async def load(self, key: str, place: int, size: int, *, reader: str = "", tell: bytes = b"") -> Page | None:
        stream = self.memory.look_up_whole(key)
        if stream is None:
            return None
        if reader and stream.ended is None:
            if reader not in stream.state.readers:
                stream.state = structs.replace(stream.state, readers=(*stream.state.readers, reader))
            self._tell(stream, tell)
        return Page(state=self._state(stream), batches=list(_behind(stream.batches, place, size)))

    @remote
    async def leave(self, key: str, reader: str, *, tell: bytes) -> None:
        stream = self.memory.look_up_whole(key)
        if stream is not None:
            if reader in stream.state.readers:
                readers = tuple(each for each in stream.state.readers if each != reader)
                stream.state = structs.replace(stream.state, readers=readers)
                stream.left = self.memory.clock()
            self._tell(stream, tell)

    @remote
    async def states(self, keys: Sequence[str]) -> Sequence[State | None]:
        found = [self.memory.look_up_whole(key) for key in keys]
        return [None if stream is None else structs.replace(self._state(stream), about=b"") for stream in found]

    @remote
    async def stop(self, key: str, reason: str, *, tell: bytes) -> State | None:
        stream = self.memory.look_up_whole(key)
        if stream is None:
            return None
        before = self._state(stream)
        if stream.ended is None:
            stream.state = structs.replace(stream.state, stop=before.stop or reason)
            self._tell(stream, tell)
        return before

    @remote
    async def claim(self, key: str, dead: str, writer: str) -> State | None:
        stream = self.memory.look_up(key)
        if stream is None or stream.ended is not None:
            return None
        if stream.state.writer != writer:
            if process_of(stream.state.writer) != dead:
                return None
            stream.state = structs.replace(stream.state, writer=writer, attempt=stream.state.attempt + 1)
        return self._state(stream)

    @remote
    async def request(self, key: str) -> bytes:
        stream = self.memory.look_up_whole(key)
        return b"" if stream is None else stream.request

    @remote
    async def find(self, owner: str) -> Sequence[tuple[str, State]]:
        streams = ((key, self.memory.look_up_whole(key)) for key in list(self.memory.streams) if owner)
        found = [(key, each) for key, each in streams if each is not None and each.owner == owner and each.state.kept]
        found.sort(key=lambda item: item[1].created)
        return [(key, self._state(stream)) for key, stream in reversed(found)]

    @remote
    async def erase(self, key: str) -> None:
        stream = self.memory.look_up_whole(key)
        if stream is not None and stream.ended is not None:
            self.memory.bury(stream)

    @remote
    async def renew(self, lease: float) -> Processes:
        leases, now = self.memory.leases, self.memory.clock()
        known = self.process in leases
        self._note_lapse(self.process)
        leases[self.process] = now + lease
        alive = frozenset(process for process, until in leases.items() if until > now)
        return Processes(known=known, alive=alive, overdue=frozenset(leases) - alive)

    @remote
    async def streams_of(self, process: str) -> Sequence[str]:
        streams = ((key, self.memory.look_up(key)) for key in list(self.memory.streams))
        running = [(key, each) for key, each in streams if each is not None and each.ended is None]
        return [key for key, each in running if process_of(each.state.writer) == process]

    @remote
    async def bury(self, process: str) -> None:
        self._note_lapse(process)
        self.memory.leases.pop(process, None)

    @remote
    async def follow(self, key: str) -> None:
        self.followed.add(key)

    async def unfollow(self, keys: Collection[str]) -> None:
        self.followed.difference_update(keys)

    @remote
    async def send(self, process: str, message: bytes) -> int:
        return self.memory.send(process, message)

    def _note_lapse(self, process: str) -> None:
        if self.memory.leases.get(process, float("inf")) <= self.memory.clock():
            self.memory.lapses.append((process, self.memory.clock()))

    def _tell(self, stream: Stored, message: bytes) -> None:
        if message:
            self.memory.send(process_of(stream.state.writer), message)

    def _state(self, stream: Stored) -> State:
        now = self.memory.clock()
        writing = process_of(stream.state.writer)
        return structs.replace(
            stream.state,
            readers=tuple(each for each in stream.state.readers if each != writing),
            ended_ago=0.0 if stream.ended is None else now - stream.ended,
            left_ago=now - stream.left,
        )


def _behind(batches: Sequence[bytes], place: int, size: int) -> Iterator[bytes]:
    """The batches with entries behind *place*, until they have *size* bytes."""
    for batch in batches:
        first, number, _ = HEADER.unpack_from(batch)
        if first + number - 1 > place:
            yield batch
            size -= len(batch)
            if size <= 0:
                return
