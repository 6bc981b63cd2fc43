"""A store in Redis 6.2 or later, or Valkey: one server, Sentinel or a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from quart_openai_sse.config import Config
from quart_openai_sse.errors import ConfigurationError, LogUnavailable
from quart_openai_sse.logs.mirror import Hear, NewStream, Page, Processes, State, Store, Write, Written
from quart_openai_sse.logs.mirror import redis_scripts as scripts
from quart_openai_sse.logs.mirror import redis_set_scripts as sets
from quart_openai_sse.logs.mirror.log import MirrorLog
from quart_openai_sse.logs.mirror.redis_calls import Call, Calls
from quart_openai_sse.logs.mirror.redis_client import (
    Client,
    check_server,
    close_client,
    connect,
    create_client,
    database_of,
    never_usable,
)
from quart_openai_sse.logs.mirror.redis_listener import Listener
from quart_openai_sse.logs.mirror.redis_values import (
    Found,
    Keys,
    encoded,
    found,
    indexed,
    key_in_index,
    key_of,
    member,
    milliseconds,
    names,
    process_of,
    readers_of,
    text,
)

_KEEP = milliseconds(24 * 3600)  # how long processes, and the sets of their streams, are kept after they were renewed


class _Own(NamedTuple):
    """A stream that runs with a writer of this process."""

    writer: str
    owner: str
    life: float
    touched: float


class RedisStore(Store):
    """See `Store`. *url* is the address; *client*, a client of the app's own, is used instead and never closed."""

    forgetful = True

    deadline = 3.0
    """Seconds that a method may take before it raises `LogUnavailable`."""
    socket_timeout = 1.5
    """Seconds that a client made from a URL waits for the server, before it tries once more."""
    ping = 10.0
    """Seconds of silence after which the server is asked whether the connection for messages is still there."""
    connections = 32
    """How many commands or pipelines may be under way at once."""
    most_found = 1000
    """How many streams of one owner `find` returns at most."""
    at_once = 500
    """How many states are read in one pipeline."""

    def __init__(self, url: str = "", *, client: Client | None = None, prefix: str = "openai-sse") -> None:
        if any(letter in prefix for letter in "{}"):
            raise ConfigurationError("log_prefix: must not contain a brace.")
        self.url, self.client, self.prefix = url, client, prefix
        if client is None:
            self._new_client()  # which refuses an invalid address now, and not when the first request comes
        self.process = ""
        self._open_calls: Calls | None = None
        self._listener: Listener | None = None
        self._own: dict[str, _Own] = {}
        self._ended: dict[bytes, Call | None] = {}
        """Members of this process's set that `renew` removes, with what it does then in the owner's index."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} prefix={self.prefix!r}>"  # not the URL: it may have a password

    async def open(self, process: str, hear: Hear, again: Callable[[], object]) -> None:
        """See `Store.open`."""
        await self._disconnect()
        client = self.client or self._new_client()
        self.process, self._keys = process, Keys(self.prefix, database_of(client))
        own, everybody, streams = self._keys.process(process), self._keys.everybody, len(self._keys.streams)

        def heard(channel: bytes, message: bytes) -> None:
            hear("" if channel in (own, everybody) else text(channel[streams:]), message)

        listener = Listener(lambda: connect(client), heard, again, ping=self.ping, timeout=self.deadline)
        calls = Calls(client, self.prefix, deadline=self.deadline, at_once=self.connections, stale=listener.reconnect)
        self._listener, self._open_calls = listener, calls
        try:
            await calls.bounded(check_server(client))
            await self._check()
            await calls.bounded(listener.open([own, everybody]))
        except BaseException:
            await self._disconnect()
            raise

    def _new_client(self) -> Client:
        # Twice as many connections as commands: those for messages and checks come on top.
        return create_client(self.url, connections=2 * self.connections, timeout=self.socket_timeout)

    async def _check(self) -> None:
        """Writes something. Raises `ConfigurationError` if the server will never allow it."""
        try:
            await self._calls.run(sets.CHECK, [self._keys.check])
        except LogUnavailable as error:
            if isinstance(error.__cause__, ResponseError) and (words := never_usable(error.__cause__)):
                raise ConfigurationError(f"log: {words}.") from None
            raise

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        with suppress(Exception):
            async with asyncio.timeout(0.4):
                if not self._own:  # otherwise another process has to end its streams
                    await self.bury(self.process)
        self._own.clear()
        self._ended.clear()
        await self._disconnect()

    async def _disconnect(self) -> None:
        listener, self._listener = self._listener, None
        calls, self._open_calls = self._open_calls, None
        if listener is not None:
            await listener.aclose()
        if calls is not None and self.client is None:
            with suppress(Exception):
                async with asyncio.timeout(0.2):
                    await close_client(calls.client)

    async def ready(self) -> bool:
        """See `Store.ready`."""
        listener = self._listener
        if listener is None:
            return False
        try:
            await self._calls.run(sets.CHECK, [self._keys.check])
            await self._calls.bounded(listener.ready())
        except LogUnavailable:
            return False
        return True

    # Streams ----------------------------------------------------------------------------------------------------------

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
        self._own[key] = _Own(stream.writer, stream.owner, stream.life, _now())
        return None

    async def write(self, writes: Sequence[Write]) -> Sequence[Written]:
        """See `Store.write`."""
        replies = await self._calls.pipeline([self._write(item) for item in writes], keep_wrong_types=True)
        return [self._written(item, reply) for item, reply in zip(writes, replies, strict=True)]

    def _write(self, item: Write) -> Call:
        kept = milliseconds(item.retention)
        ends = kept, kept + milliseconds(item.tombstone), int(item.holds_key)
        what = item.place, item.count, item.batch, item.decided, item.end, item.request
        args = item.writer, *what, *ends, self._keys.channel(item.key)
        return Call(scripts.WRITE, self._keys.stream(item.key), args)

    def _written(self, item: Write, reply: Any) -> Written:
        if isinstance(reply, Exception):  # its keys are another program's: `create` will say so
            written = Written(result="gone")
        elif isinstance(reply, int):
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

    def _disown(self, key: str, own: _Own, *, retention: float | None = None) -> None:
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
        self._own[key] = _Own(writer, "", 0.0, _now())  # its time in its owner's index is enough for its end
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

    # Processes and messages -------------------------------------------------------------------------------------------

    async def renew(self, lease: float) -> Processes:
        """See `Store.renew`."""
        ended, streams = dict(self._ended), self._keys.streams_of(self.process)
        calls = [
            Call(sets.TOUCH, [streams], [_KEEP, *ended]),
            Call(sets.RENEW, [self._keys.leases], [self.process, milliseconds(lease), _KEEP]),
            *filter(None, ended.values()),
            *self._long_running(),
        ]
        known_streams, (known, alive, overdue), *_ = await self._calls.pipeline(calls)
        for each in ended:
            self._ended.pop(each, None)
        if not known_streams and self._own:
            members = [member(own.writer, key) for key, own in self._own.items()]
            await self._calls.run(sets.ENTER, [streams], _KEEP, *members)
        return Processes(known=bool(known), alive=names(alive), overdue=names(overdue))

    def _long_running(self) -> list[Call]:
        """Keeps streams in their owners' indexes for as long as they run."""
        now, calls = _now(), []
        for key, own in self._own.items():
            if own.owner and now - own.touched > own.life / 4:
                self._own[key] = own._replace(touched=now)
                calls.append(self._index(own.owner, key, own.life, "CH"))
        return calls

    async def streams_of(self, process: str) -> Sequence[str]:
        """See `Store.streams_of`."""
        members = await self._calls.run(sets.MEMBERS, [self._keys.streams_of(process)])
        return list(dict.fromkeys(map(key_of, members)))

    async def bury(self, process: str) -> None:
        """See `Store.bury`."""
        lease = Call(sets.BURY, [self._keys.leases], [process])
        await self._calls.after([Call(sets.DELETE, [self._keys.streams_of(process)])], lease)

    async def follow(self, key: str) -> None:
        """See `Store.follow`."""
        if self._listener is None:
            raise LogUnavailable("The stream log is not open.")
        await self._calls.bounded(self._listener.add(self._keys.channel(key)))

    async def unfollow(self, keys: Collection[str]) -> None:
        """See `Store.unfollow`."""
        if self._listener is not None:
            self._listener.discard([self._keys.channel(key) for key in keys])

    async def send(self, process: str, message: bytes) -> int:
        """See `Store.send`."""
        channel = self._keys.process(process) if process else self._keys.everybody
        count = int(await self._calls.run(sets.SEND, [self._keys.leases], channel, message))
        return -1 if self._calls.cluster else count

    # Calls ------------------------------------------------------------------------------------------------------------

    @property
    def _calls(self) -> Calls:
        if self._open_calls is None:
            raise LogUnavailable("The stream log is not open.")
        return self._open_calls

    def _enter(self, writer: str, key: str) -> Call:
        """Puts a stream into the set of its writer's process."""
        stream = member(writer, key)
        self._ended.pop(stream, None)
        return Call(sets.ENTER, [self._keys.streams_of(process_of(writer))], [_KEEP, stream])

    def _index(self, owner: str, key: str, life: float, how: str) -> Call:
        """Puts a stream into the index of its owner, for *life* seconds."""
        return Call(sets.INDEX, [self._keys.owner(owner)], [indexed(owner, key), milliseconds(life), how])


def redis_log(config: Config, *, client: Client | None = None) -> MirrorLog:
    """The log whose streams are in the Redis of the option `log`, or of *client*, one of redis-py's for asyncio.

    A client of the app's own (`Redis` or `RedisCluster`, without `decode_responses`) is used and never closed. It must
    belong to the event loop of the app. Raises `ConfigurationError` if the address cannot be understood.
    """
    store = RedisStore("" if client is not None else config.log, client=client, prefix=config.log_prefix)
    return MirrorLog(store, config, lease=config.log_lease, cipher=config.log_cipher)


def _now() -> float:
    return asyncio.get_running_loop().time()
