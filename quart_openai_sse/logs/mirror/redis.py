"""A store in Redis 6.2 or later, or Valkey: one server, Sentinel or a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from redis.exceptions import ResponseError

from quart_openai_sse.config import Config
from quart_openai_sse.errors import ConfigurationError, LogUnavailable
from quart_openai_sse.logs.mirror import Hear, Processes, Store
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
from quart_openai_sse.logs.mirror.redis_streams import KEEP, RedisStreams, now
from quart_openai_sse.logs.mirror.redis_values import Keys, key_of, member, milliseconds, names, text


class RedisStore(RedisStreams, Store):
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

    def __init__(self, url: str = "", *, client: Client | None = None, prefix: str = "openai-sse") -> None:
        super().__init__()
        if any(letter in prefix for letter in "{}"):
            raise ConfigurationError("log_prefix: must not contain a brace.")
        self.url, self.client, self.prefix = url, client, prefix
        if client is None:
            self._new_client()  # which refuses an invalid address now, and not when the first request comes
        self.process = ""
        self._listener: Listener | None = None

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

    # Processes and messages -------------------------------------------------------------------------------------------

    async def renew(self, lease: float) -> Processes:
        """See `Store.renew`."""
        ended, streams = dict(self._ended), self._keys.streams_of(self.process)
        calls = [
            Call(sets.TOUCH, [streams], [KEEP, *ended]),
            Call(sets.RENEW, [self._keys.leases], [self.process, milliseconds(lease), KEEP]),
            *filter(None, ended.values()),
            *self._long_running(),
        ]
        known_streams, (known, alive, overdue), *_ = await self._calls.pipeline(calls)
        for each in ended:
            self._ended.pop(each, None)
        if not known_streams and self._own:
            members = [member(own.writer, key) for key, own in self._own.items()]
            await self._calls.run(sets.ENTER, [streams], KEEP, *members)
        return Processes(known=bool(known), alive=names(alive), overdue=names(overdue))

    def _long_running(self) -> list[Call]:
        """Keeps streams in their owners' indexes for as long as they run."""
        time, calls = now(), []
        for key, own in self._own.items():
            if own.owner and time - own.touched > own.life / 4:
                self._own[key] = own._replace(touched=time)
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


def redis_log(config: Config, *, client: Client | None = None) -> MirrorLog:
    """The log whose streams are in the Redis of the option `log`, or of *client*, one of redis-py's for asyncio.

    A client of the app's own (`Redis` or `RedisCluster`, without `decode_responses`) is used and never closed. It must
    belong to the event loop of the app. Raises `ConfigurationError` if the address cannot be understood.
    """
    store = RedisStore("" if client is not None else config.log, client=client, prefix=config.log_prefix)
    return MirrorLog(store, config, lease=config.log_lease, cipher=config.log_cipher)
