"""The streams of a store in Redis: begun, written, read, claimed and erased."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs.mirror import NewStream, Page, State, Write, Written
from quart_openai_sse.logs.mirror import redis_scripts as scripts
from quart_openai_sse.logs.mirror import redis_set_scripts as sets
from quart_openai_sse.logs.mirror.redis_calls import Call, Calls
from quart_openai_sse.logs.mirror.redis_values import (
    Found,
    Keys,
    encoded,
    found,
    indexed,
    key_in_index,
    member,
    milliseconds,
    packed,
    process_of,
    readers_of,
    text,
)

KEEP = milliseconds(24 * 3600)
"""How long processes, and the sets of their streams, are kept after they were renewed."""


class Own(NamedTuple):
    """A stream that runs with a writer of this process."""

    writer: str
    owner: str
    life: float
    touched: float


class RedisStreams:
    """The methods of `RedisStore` that are about one stream or the streams of an owner."""

    _keys: Keys
    most_found = 1000
    """How many streams of one owner `find` returns at most."""
    in_one_script = 64
    """How many streams one script writes to: it keeps the server from others meanwhile, 0.4 ms."""
    at_once = 500
    """How many states are read in one pipeline."""

    def __init__(self) -> None:
        self._open_calls: Calls | None = None
        self._own: dict[str, Own] = {}
        self._ended: dict[bytes, Call | None] = {}
        """Members of this process's set that `renew` removes, with what it does then in the owner's index."""

    async def create(self, key: str, stream: NewStream) -> State | None:
        """See `Store.create`."""
        before = [self._enter(stream.writer, key)]
        if stream.owner:
            before.append(self._index(stream.owner, key, stream.life, "CH"))
        members = stream.writer, encoded(stream.digest), stream.about, repr(stream.created)
        call = Call(scripts.CREATE, self._keys.stream(key), (*members, milliseconds(stream.life)))
        holder = found(await self._calls.after(before, call))
        if holder is not None:
            self._ended.setdefault(member(stream.writer, key), None)
            return holder.state
        self._own[key] = Own(stream.writer, stream.owner, stream.life, now())
        return None

    async def write(self, writes: Sequence[Write]) -> Sequence[Written]:
        """See `Store.write`."""
        # Commands cost, and those of a cluster cannot have the keys of two slots.
        size = 1 if self._calls.cluster else self.in_one_script
        calls = [self._write(writes[start : start + size]) for start in range(0, len(writes), size)]
        replies = [reply for part in await self._calls.pipeline(calls) for reply in part]
        return [self._written(item, reply) for item, reply in zip(writes, replies, strict=True)]

    def _write(self, writes: Sequence[Write]) -> Call:
        keys = [key for item in writes for key in self._keys.stream(item.key)]
        return Call(scripts.WRITE, keys, [packed(item, self._keys.channel(item.key)) for item in writes])

    def _written(self, item: Write, reply: Any) -> Written:
        if isinstance(reply, int):
            written = Written(result="done", count=reply)
        else:
            result, count, stop, readers = reply
            others = readers_of(readers, item.writer)
            written = Written(result=result.decode(), count=count, stop=text(stop), readers=others)
        own = self._own.get(item.key)
        if own is not None and own.writer == item.writer:
            if written.result in ("lost", "gone"):
                self._disown(item.key, own)
            elif written.result == "done" and item.end:
                self._disown(item.key, own, retention=item.retention if item.holds_key else None)
        return written

    def _disown(self, key: str, own: Own, *, retention: float | None = None) -> None:
        """Has `renew` see to it that the stream is no longer among those that run here."""
        del self._own[key]
        index = self._index(own.owner, key, retention, "XX") if own.owner and retention is not None else None
        self._ended[member(own.writer, key)] = index

    async def load(self, key: str, place: int, size: int, *, reader: str = "", tell: bytes = b"") -> Page | None:
        """See `Store.load`."""
        args = place, size, reader, tell, self._keys.processes
        reply = await self._calls.run(scripts.LOAD, self._keys.stream(key), *args)
        if reply is None or (state := found(reply[0])) is None:
            return None
        return Page(state=state.state, batches=reply[1])

    async def leave(self, key: str, reader: str, *, tell: bytes) -> None:
        """See `Store.leave`."""
        await self._calls.run(scripts.LEAVE, self._keys.stream(key), reader, tell, self._keys.processes)

    async def states(self, keys: Sequence[str]) -> Sequence[State | None]:
        """See `Store.states`."""
        return [state and state.state for state in await self._states(keys, about=0)]

    async def _states(self, keys: Sequence[str], *, about: int) -> list[Found | None]:
        states: list[Found | None] = []
        for start in range(0, len(keys), self.at_once):
            calls = [Call(scripts.STATE, self._keys.stream(key), [about]) for key in keys[start : start + self.at_once]]
            states += map(found, await self._calls.pipeline(calls))
        return states

    async def stop(self, key: str, reason: str, *, tell: bytes) -> State | None:
        """See `Store.stop`."""
        args = encoded(reason), tell, self._keys.processes
        state = found(await self._calls.run(scripts.STOP, self._keys.stream(key), *args))
        return state and state.state

    async def claim(self, key: str, dead: str, writer: str) -> State | None:
        """See `Store.claim`."""
        call = Call(scripts.CLAIM, self._keys.stream(key), (dead, writer))
        state = found(await self._calls.after([self._enter(writer, key)], call))
        if state is None:
            self._ended.setdefault(member(writer, key), None)
            return None
        self._own[key] = Own(writer, "", 0.0, now())  # its time in its owner's index is enough for its end
        return state.state

    async def request(self, key: str) -> bytes:
        """See `Store.request`."""
        return bytes(await self._calls.run(scripts.REQUEST, self._keys.stream(key)))

    async def find(self, owner: str) -> Sequence[tuple[str, State]]:
        """See `Store.find`."""
        if not owner:
            return []
        members = await self._calls.run(sets.INDEXED, [self._keys.owner(owner)], self.most_found)
        keys = [key_in_index(owner, each) for each in members]
        states = zip(keys, await self._states(keys, about=1), strict=True)
        kept = [(key, each) for key, each in states if each and each.state.kept]
        kept.sort(key=lambda item: item[1].created, reverse=True)
        return [(key, each.state) for key, each in kept]

    async def erase(self, key: str) -> None:
        """See `Store.erase`."""
        await self._calls.run(scripts.ERASE, self._keys.stream(key))

    @property
    def _calls(self) -> Calls:
        if self._open_calls is None:
            raise LogUnavailable("The stream log is not open.")
        return self._open_calls

    def _enter(self, writer: str, key: str) -> Call:
        """Puts a stream into the set of its writer's process."""
        stream = member(writer, key)
        self._ended.pop(stream, None)
        return Call(sets.ENTER, [self._keys.streams_of(process_of(writer))], [KEEP, stream])

    def _index(self, owner: str, key: str, life: float, how: str) -> Call:
        """Puts a stream into the index of its owner, for *life* seconds."""
        return Call(sets.INDEX, [self._keys.owner(owner)], [indexed(owner, key), milliseconds(life), how])


def now() -> float:
    """The time of the loop."""
    return asyncio.get_running_loop().time()
