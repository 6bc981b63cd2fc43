"""A store in Redis 6.2 or later, or Valkey: one server, Sentinel or a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from redis.exceptions import AskError, NoScriptError, ResponseError

from quart_openai_sse.errors import ConfigurationError, LogUnavailable
from quart_openai_sse.logs.mirror import Hear, NewStream, Page, Processes, State, Store, Write, Written
from quart_openai_sse.logs.mirror import redis_scripts as scripts
from quart_openai_sse.logs.mirror.redis_client import (
    Client,
    check_server,
    close_client,
    connect,
    create_client,
    database_of,
    is_cluster,
    reason_of,
    unavailable,
)
from quart_openai_sse.logs.mirror.redis_listener import Listener
from quart_openai_sse.logs.mirror.redis_scripts import Script, encoded, found, text

VERSION = 1
"""The version of keys and scripts, which is part of each key."""

_KEEP = 24 * 3600 * 1000  # ms for which processes, and their sets of streams, are kept after the last renewal


class _Own(NamedTuple):
    """A stream that runs with a writer of this process."""

    writer: str
    owner: str
    life: float
    touched: float


class _Call(NamedTuple):
    """A script with its keys and arguments."""

    script: Script
    keys: Sequence[bytes]
    args: Sequence[Any]


class RedisStore(Store):
    """See `Store`. *client* is one of the app's own, which is used and never closed, instead of a new one for *url*."""

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
    """How many scripts there are in one pipeline of `states` at most."""

    def __init__(self, url: str = "", *, client: Client | None = None, prefix: str = "openai-sse") -> None:
        if any(letter in prefix for letter in "{}"):
            raise ConfigurationError("log_prefix: must not contain a brace.")
        self.prefix = prefix
        self.process = ""
        self._url, self._given, self._client = url, client, client
        self._slots = asyncio.Semaphore(self.connections)
        self._listener: Listener | None = None
        self._own: dict[str, _Own] = {}
        self._ended: dict[bytes, _Call | None] = {}
        """Members of this process's set that are to be removed, with what is to be done for the owner's index."""
        if client is None:  # a wrong address is found at once
            self._client = self._new_client()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} prefix={self.prefix!r}>"  # not the URL: it may have a password

    async def open(self, process: str, hear: Hear, again: Any) -> None:
        """See `Store.open`."""
        if self._client is None:
            self._client = self._new_client()
        client = self._client
        self.process = process
        self._base = f"{self.prefix}:{VERSION}:"
        self._channels = f"{self._base}{database_of(client)}:"
        mine, everybody, streams = self._channel("process", process), self._channel("processes"), self._channel("s", "")

        def heard(channel: bytes, message: bytes) -> None:
            hear("" if channel in (mine, everybody) else text(channel[len(streams) :]), message)

        await self._close_listener()
        listener = Listener(lambda: connect(client), heard, again, ping=self.ping, timeout=self.deadline)
        try:
            await self._bounded(check_server(client))
            await self._check()
            self._listener = listener
            await self._bounded(listener.open([mine, everybody]))
        except BaseException:
            await self._close_listener()
            await self._close_client()
            raise

    def _new_client(self) -> Client:
        # Twice as many, since connections of the listener and of checks come on top of the commands.
        return create_client(self._url, connections=2 * self.connections, timeout=self.socket_timeout)

    async def _check(self) -> None:
        """Writes something."""
        try:
            await self._run(scripts.CHECK, [self._key("processes", None, "check")])
        except LogUnavailable as error:
            if not isinstance(error.__cause__, ResponseError):
                raise
            words = reason_of(error.__cause__)
            if "replica" in words or "permission" in words or "cluster://" in words:
                raise ConfigurationError(f"log: {words}.") from None
            raise

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        await self._close_listener()
        with suppress(Exception):
            async with asyncio.timeout(0.4):
                if self.process and self._client is not None and not self._own:  # otherwise another process has to end its streams
                    await self.bury(self.process)
        self._own.clear()
        self._ended.clear()
        await self._close_client()

    async def _close_client(self) -> None:
        client = self._client
        if self._given is None and client is not None:
            self._client = None
            with suppress(Exception):
                async with asyncio.timeout(0.2):
                    await close_client(client)

    async def _close_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.aclose()

    async def ready(self) -> bool:
        """See `Store.ready`."""
        try:
            await self._run(scripts.CHECK, [self._key("processes", None, "check")])
        except Exception:
            return False
        return self._listener is not None and self._listener.connected

    # Streams ----------------------------------------------------------------------------------------------------------

    async def create(self, key: str, stream: NewStream) -> State | None:
        """See `Store.create`."""
        life = _ms(stream.life)
        before = [self._enter(stream.writer, key)]
        if stream.owner:
            before.append(self._indexed(stream.owner, key, life, "CH"))
        members = stream.writer, encoded(stream.digest), stream.about, encoded(stream.owner), repr(stream.created), life
        state = found(await self._after(before, _Call(scripts.CREATE, self._stream(key), members)))
        if state is None:
            self._own[key] = _Own(stream.writer, stream.owner, stream.life, _now())
            return None
        self._ended.setdefault(_member(stream.writer, key), None)
        return state.state

    async def write(self, writes: Sequence[Write]) -> Sequence[Written]:
        """See `Store.write`."""
        replies = await self._pipeline([self._write(item) for item in writes], keep_wrong_types=True)
        written = []
        for item, reply in zip(writes, replies, strict=True):
            if isinstance(reply, int):
                result = Written(result="done", count=reply)
            elif isinstance(reply, Exception):  # its keys are somebody else's: `create` will say so
                result = Written(result="gone")
            else:
                name, count, stop, readers = reply
                result = Written(
                    result=name.decode(), count=count, stop=text(stop), readers=_others(readers, item.writer)
                )
            if item.end or result.result in ("lost", "gone"):
                self._disown(item, result)
            written.append(result)
        return written

    def _write(self, item: Write) -> _Call:
        kept = _ms(item.retention)
        args = (
            item.writer,
            item.place,
            item.count,
            item.batch,
            item.decided,
            item.end,
            item.request,
            kept,
            kept + _ms(item.tombstone),
            "1" if item.holds_key else "0",
            self._channel("s", item.key),
        )
        return _Call(scripts.WRITE, self._stream(item.key), args)

    def _disown(self, item: Write, result: Written) -> None:
        """Notes what `renew` is to do about a stream that no longer runs here."""
        own = self._own.get(item.key)
        if own is None or own.writer != item.writer or result.result == "moved":
            return
        del self._own[item.key]
        index = None
        if result.result == "done" and own.owner and item.holds_key:
            index = self._indexed(own.owner, item.key, _ms(item.retention), "XX")
        self._ended[_member(item.writer, item.key)] = index

    async def load(self, key: str, place: int, size: int, *, reader: str = "", tell: bytes = b"") -> Page | None:
        """See `Store.load`."""
        reply = await self._run(
            scripts.LOAD, self._stream(key), place, size, reader, tell, self._channel("process", "")
        )
        if reply is None:
            return None
        state = found(reply[0])
        assert state is not None  # noqa: S101 - the script answers nil, or both
        return Page(state=state.state, batches=reply[1])

    async def leave(self, key: str, reader: str, *, tell: bytes) -> None:
        """See `Store.leave`."""
        await self._run(scripts.LEAVE, self._stream(key), reader, tell, self._channel("process", ""))

    async def states(self, keys: Sequence[str]) -> Sequence[State | None]:
        """See `Store.states`."""
        return [state and state.state for state in await self._states(keys, "0")]

    async def _states(self, keys: Sequence[str], about: str) -> list[scripts.Found | None]:
        states: list[scripts.Found | None] = []
        for start in range(0, len(keys), self.at_once):
            part = keys[start : start + self.at_once]
            states += map(found, await self._pipeline([_Call(scripts.STATE, self._stream(key), [about]) for key in part]))
        return states

    async def stop(self, key: str, reason: str, *, tell: bytes) -> State | None:
        """See `Store.stop`."""
        arguments = encoded(reason), tell, self._channel("process", "")
        state = found(await self._run(scripts.STOP, self._stream(key), *arguments))
        return state and state.state

    async def claim(self, key: str, dead: str, writer: str) -> State | None:
        """See `Store.claim`."""
        call = _Call(scripts.CLAIM, self._stream(key), (dead, writer))
        state = found(await self._after([self._enter(writer, key)], call))
        if state is None:
            self._ended.setdefault(_member(writer, key), None)
            return None
        self._own[key] = _Own(writer, "", 0.0, _now())  # its owner's index is refreshed by nobody
        return state.state

    async def request(self, key: str) -> bytes:
        """See `Store.request`."""
        return bytes(await self._run(scripts.REQUEST, self._stream(key)))

    async def find(self, owner: str) -> Sequence[tuple[str, State]]:
        """See `Store.find`."""
        if not owner:
            return []
        keys = [text(key) for key in await self._run(scripts.INDEXED, [self._key("owner", owner)], self.most_found)]
        kept = [
            (key, state)
            for key, state in zip(keys, await self._states(keys, "1"), strict=True)
            if state is not None and state.state.kept and state.owner == owner
        ]
        kept.sort(key=lambda item: item[1].created, reverse=True)
        return [(key, state.state) for key, state in kept]

    async def erase(self, key: str) -> None:
        """See `Store.erase`."""
        await self._run(scripts.ERASE, self._stream(key))

    # Processes and messages -------------------------------------------------------------------------------------------

    async def renew(self, lease: float) -> Processes:
        """See `Store.renew`."""
        ended = dict(self._ended)
        streams = self._key("process", self.process, "streams")
        calls = [
            _Call(scripts.TOUCH, [streams], [_KEEP, *ended]),
            _Call(scripts.RENEW, [self._key("processes", None, "leases")], [self.process, _ms(lease), _KEEP]),
            *filter(None, ended.values()),
            *self._long_running(),
        ]
        known_set, (known, alive, overdue), *_ = await self._pipeline(calls)
        for member in ended:
            self._ended.pop(member, None)
        if not known_set and self._own:
            members = [_member(own.writer, key) for key, own in self._own.items()]
            await self._run(scripts.ENTER, [streams], _KEEP, *members)
        return Processes(known=bool(known), alive=_names(alive), overdue=_names(overdue))

    def _long_running(self) -> list[_Call]:
        """Keeps streams in their owners' indexes as long as they run."""
        now, calls = _now(), []
        for key, own in self._own.items():
            if own.owner and now - own.touched > own.life / 4:
                self._own[key] = own._replace(touched=now)
                calls.append(self._indexed(own.owner, key, _ms(own.life), "CH"))
        return calls

    async def streams_of(self, process: str) -> Sequence[str]:
        """See `Store.streams_of`."""
        members = await self._run(scripts.MEMBERS, [self._key("process", process, "streams")])
        return list({text(member.partition(b" ")[2]): None for member in members})

    async def bury(self, process: str) -> None:
        """See `Store.bury`."""
        leases = _Call(scripts.BURY, [self._key("processes", None, "leases")], [process])
        await self._after([_Call(scripts.DELETE, [self._key("process", process, "streams")], [])], leases)

    async def follow(self, key: str) -> None:
        """See `Store.follow`."""
        if self._listener is None:
            raise LogUnavailable("The stream log is not open.")
        await self._bounded(self._listener.add(self._channel("s", key)))

    async def unfollow(self, keys: Collection[str]) -> None:
        """See `Store.unfollow`."""
        if self._listener is not None:
            self._listener.discard([self._channel("s", key) for key in keys])

    async def send(self, process: str, message: bytes) -> int:
        """See `Store.send`."""
        channel = self._channel("process", process) if process else self._channel("processes")
        count = int(await self._run(scripts.SEND, [self._key("processes", None, "leases")], channel, message))
        return -1 if is_cluster(self._client) else count

    # Keys -------------------------------------------------------------------------------------------------------------

    def _key(self, kind: str, name: str | None, part: str = "") -> bytes:
        """A key: keys with the same braces are in the same slot of a cluster."""
        tag = kind if name is None else f"{kind}/{name}"
        return encoded(f"{self._base}{{{tag}}}{part and ':'}{part}")

    def _stream(self, key: str) -> list[bytes]:
        base = encoded(f"{self._base}{{s/{key}}}:")
        return [base + b"state", base + b"batches", base + b"hooks"]

    def _channel(self, kind: str, name: str | None = None) -> bytes:
        return encoded(f"{self._channels}{kind}" if name is None else f"{self._channels}{kind}/{name}")

    def _enter(self, writer: str, key: str) -> _Call:
        member = _member(writer, key)
        self._ended.pop(member, None)
        return _Call(scripts.ENTER, [self._key("process", _process(writer), "streams")], [_KEEP, member])

    def _indexed(self, owner: str, key: str, life: int, how: str) -> _Call:
        return _Call(scripts.INDEX, [self._key("owner", owner)], [encoded(key), life, how])

    # Calls ------------------------------------------------------------------------------------------------------------

    async def _run(self, script: Script, keys: Sequence[bytes], *args: Any) -> Any:
        async def run() -> Any:
            async with self._slots:
                try:
                    return await self._open_client.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
                except NoScriptError:
                    return await self._open_client.execute_command("EVAL", script.text, len(keys), *keys, *args)

        return await self._bounded(run())

    async def _after(self, before: Sequence[_Call], call: _Call) -> Any:
        """Runs *call* once the others have run, and returns its result."""
        if not is_cluster(self._client):
            return (await self._pipeline([*before, call]))[-1]
        await self._pipeline(before)  # a cluster's pipeline has no order between nodes
        return await self._run(call.script, call.keys, *call.args)

    async def _pipeline(self, calls: Sequence[_Call], *, keep_wrong_types: bool = False) -> list[Any]:
        if not calls:
            return []
        replies = await self._bounded(self._replies(calls))
        for reply in replies:
            if isinstance(reply, Exception) and not (keep_wrong_types and "WRONGTYPE" in str(reply)):
                raise self._failed(reply) from reply
        return replies

    async def _replies(self, calls: Sequence[_Call]) -> list[Any]:
        async with self._slots:
            pipe = self._open_client.pipeline(transaction=False)
            for script, keys, args in calls:
                # Not `evalsha`, which the pipeline of a cluster refuses.
                pipe.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
            replies = list(await pipe.execute(raise_on_error=False))
            unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:
                for script, keys, args in (calls[n] for n in unknown):
                    pipe.execute_command("EVAL", script.text, len(keys), *keys, *args)
                for n, reply in zip(unknown, await pipe.execute(raise_on_error=False), strict=True):
                    replies[n] = reply
            return replies

    @property
    def _open_client(self) -> Client:
        if self._client is None:
            raise LogUnavailable("The stream log is not open.")
        return self._client

    async def _bounded(self, call: Any) -> Any:
        try:
            async with asyncio.timeout(self.deadline):
                return await call
        except ConfigurationError:
            raise
        # Not only redis-py's own errors: a connection that breaks at the wrong moment raises others.
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> LogUnavailable:
        return unavailable(error, self.prefix)


def _member(writer: str, key: str) -> bytes:
    """A stream in the set of its writer's process. The number tells it from an earlier one with the same key."""
    return encoded(f"{writer.partition('.')[2]} {key}")


def _process(writer: str) -> str:
    return writer.partition(".")[0]


def _others(readers: bytes, writer: str) -> tuple[str, ...]:
    process = _process(writer)
    return tuple(reader for reader in readers.decode().split() if reader != process)


def _names(replies: Sequence[bytes]) -> frozenset[str]:
    return frozenset(name.decode() for name in replies)


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _now() -> float:
    return asyncio.get_running_loop().time()
