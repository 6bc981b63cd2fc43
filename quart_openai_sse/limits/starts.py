"""The limit of starts per period (extra `limits`): a `prepare` hook, in memory or on a storage of `limits`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, cast

from limits import RateLimitItemPerSecond
from limits.aio.storage import Storage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.storage import storage_from_string

from quart_openai_sse.errors import LimitsUnavailable, TooManyStarts
from quart_openai_sse.limits.windows import SOON, MemoryWindow, SQLiteWindow
from quart_openai_sse.principal import Principal, owner_key

__all__ = ["limit_starts"]

logger = logging.getLogger("quart_openai_sse")

_PATIENCE = 2.0  # seconds for an answer of the storage
_MOST_AT_ONCE = 50  # requests to the storage; a client of redis-py refuses the 101st that needs a connection


def limit_starts(
    count: int, period: timedelta, *, storage: str | Storage = "memory://", name: str = "starts"
) -> Callable[[dict[str, Any], Principal], Awaitable[None]]:
    """Returns a hook for `ai.prepare` that limits the starts of each principal, on all routes together.

    A principal can start up to *count* streams in any *period*, which is a whole number of seconds. *storage* is where
    they are counted: `"memory://"` in this process; for the processes of one host an SQLite file, relative to the
    working directory (`"sqlite:///instance/limits.db"`), which may be that of the stream log; for several hosts the
    URI of another storage of the `limits` library that has moving windows (`"redis://127.0.0.1:6379/0"`), or an object
    of `limits.aio.storage`, which the app closes. In a storage other than memory, hooks with the same *count*, *period*
    and *name* share a count.

    Raises `ValueError` for a *count* below 1, a *period* that is not a whole number of seconds from 1 on, and a
    *storage* that cannot be used. The hook raises `TooManyStarts`, with the seconds to wait as `retry_after`, and
    `LimitsUnavailable` if the storage has not answered within 2 seconds.
    """
    seconds = int(period.total_seconds())
    if count < 1 or seconds < 1 or period != timedelta(seconds=seconds):
        raise ValueError("limit_starts: count must be at least 1, and period a whole number of seconds, at least 1.")
    window: _Window
    if isinstance(storage, str) and storage.removeprefix("async+").startswith("memory:"):
        window = _InMemory(MemoryWindow(count, seconds))
    elif isinstance(storage, str) and storage.startswith("sqlite:"):
        window = _InFile(SQLiteWindow(_path_of(storage), count, seconds, name))
    else:
        window = _OnStorage(RateLimitItemPerSecond(count, seconds, namespace="quart_openai_sse"), storage, name)
    return _StartLimit(f"You may start {count} streams in {seconds} s.", window)


class _Window(Protocol):
    """Where starts are counted."""

    async def take(self, key: str) -> float:
        """Counts a start of *key* and returns 0; if there is no room for it, the seconds until there is."""
        ...

    async def aclose(self) -> None:
        """Closes what belongs to the running event loop."""
        ...


class _StartLimit:
    """The hook. It is an object, so that a relay which is closed can close its connections."""

    def __init__(self, refusal: str, window: _Window) -> None:
        self._refusal = refusal
        self._window = window

    async def __call__(self, body: dict[str, Any], principal: Principal) -> None:
        # A digest, so that the storage holds no user's name.
        if wait := await self._window.take(owner_key("", principal)):
            raise TooManyStarts(self._refusal, retry_after=wait)

    async def aclose(self) -> None:
        """Closes the connections of the running event loop. Further starts open new ones."""
        await self._window.aclose()


class _InMemory:
    def __init__(self, window: MemoryWindow) -> None:
        self._window = window

    async def take(self, key: str) -> float:
        return self._window.take(key)

    async def aclose(self) -> None:
        pass


class _InFile:
    def __init__(self, window: SQLiteWindow) -> None:
        self._window = window

    async def take(self, key: str) -> float:
        """The seconds to wait, or 0 for a start that is counted. Raises `LimitsUnavailable`."""
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._window.take(key)
        except Exception as error:
            raise _unavailable(error) from error

    async def aclose(self) -> None:
        self._window.close()


@dataclass
class _Connected:
    """A storage on one event loop: its connections and its lock belong to that."""

    storage: Storage
    limiter: MovingWindowRateLimiter
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MOST_AT_ONCE))


class _OnStorage:
    """Counts on a storage of `limits`. Checking and counting are one step of the storage: in Redis, one script."""

    def __init__(self, item: RateLimitItemPerSecond, storage: str | Storage, name: str) -> None:
        self._item = item
        self._storage = storage
        self._name = name
        self._connected: dict[asyncio.AbstractEventLoop, _Connected] = {}
        self._create()  # raises now if the storage cannot be used

    async def take(self, key: str) -> float:
        """The seconds to wait, or 0 for a start that is counted. Raises `LimitsUnavailable`."""
        connected = self._connect()
        try:
            async with asyncio.timeout(_PATIENCE), connected.turn:
                if await connected.limiter.hit(self._item, self._name, key):
                    return 0.0
                stats = await connected.limiter.get_window_stats(self._item, self._name, key)
        except Exception as error:
            raise _unavailable(error) from error
        return max(stats.reset_time - time.time(), SOON)

    async def aclose(self) -> None:
        """Closes what this object has opened on the running event loop."""
        connected = self._connected.pop(asyncio.get_running_loop(), None)
        if connected is not None and connected.storage is not self._storage:
            # `limits` closes nothing by itself, and redis-py warns of open connections.
            bridge: Any = getattr(connected.storage, "bridge", None)
            if bridge is not None:
                for client in (bridge.get_connection(), *getattr(getattr(bridge, "sentinel", None), "sentinels", ())):
                    await client.aclose()

    def _connect(self) -> _Connected:
        loop = asyncio.get_running_loop()
        if (connected := self._connected.get(loop)) is None:
            for other in [other for other in self._connected if other.is_closed()]:
                del self._connected[other]
            connected = self._connected[loop] = self._create()
        return connected

    def _create(self) -> _Connected:
        storage = _storage_of(self._storage) if isinstance(self._storage, str) else self._storage
        if not isinstance(storage, Storage):
            raise TypeError("limit_starts: storage must be a URI, or an object of limits.aio.storage.")
        try:
            return _Connected(storage, MovingWindowRateLimiter(storage))
        except NotImplementedError:
            raise ValueError(f"limit_starts: {type(storage).__name__} of limits has no moving windows.") from None


def _unavailable(error: Exception) -> LimitsUnavailable:
    logger.warning("starts could not be counted, and are refused: %s: %s", type(error).__name__, error)
    return LimitsUnavailable("The storage that counts starts could not be reached.")


def _path_of(uri: str) -> str:
    path = uri.removeprefix("sqlite:///")
    if path == uri or not path:
        raise ValueError("limit_starts: storage must be sqlite:/// and a path.")
    return path


def _storage_of(uri: str) -> Storage:
    scheme, found, _ = uri.removeprefix("async+").partition("://")
    # `limits` takes redis-py or coredis; only redis-py is tried here.
    options = {"implementation": "redispy"} if scheme.startswith("redis") else {}
    try:
        if not found:  # of "redis:/host" `limits` makes a Redis at localhost
            raise ValueError
        return cast(Storage, storage_from_string(f"async+{uri.removeprefix('async+')}", **options))
    except Exception as error:
        missing = "prerequisite not available" in str(error)
        reason = str(error) if missing else "it is not a URI of a storage of limits"
    # Not the URI, nor an error that quotes it: it may hold a password.
    raise ValueError(f"limit_starts: storage={scheme if found else ''}://…: {reason}")
