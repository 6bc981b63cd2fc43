"""A store in an SQLite file: for all workers of one host, and for restarts, without a service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from sqlite3 import Connection
from typing import TypeVar

from quart_openai_sse.config import Config
from quart_openai_sse.errors import ConfigurationError, LogUnavailable
from quart_openai_sse.logs.addresses import file_of
from quart_openai_sse.logs.mirror import Hear, NewStream, Page, Processes, State, Write, Written
from quart_openai_sse.logs.mirror.log import MirrorLog
from quart_openai_sse.logs.mirror.sqlite_cleaning import Cleaning
from quart_openai_sse.logs.mirror.sqlite_news import News
from quart_openai_sse.logs.mirror.sqlite_streams import SCHEMA, Streams, send
from quart_openai_sse.logs.mirror.sqlite_thread import SQLiteThread

T = TypeVar("T")

_READ, _WRITE = "BEGIN", "BEGIN IMMEDIATE"


class SQLiteStore:
    """See `Store`. *clock* is Unix time, and *steady* is a clock that nobody sets and that the processes share."""

    forgetful = False
    """Until the file was removed and made again."""

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._steady = steady
        self._streams = Streams(clock, steady)
        self._file: SQLiteThread | None = None

    async def open(self, process: str, hear: Hear, again: Callable[[], object]) -> None:
        """See `Store.open`."""
        await self.aclose()
        self._process = process
        self._news = news = News(process, hear, again, self._steady)
        cleaning = Cleaning(self._streams.clock, self._steady)

        def connected(db: Connection) -> None:
            self.forgetful = self.forgetful or (self._file is not None and self._file.was_replaced)
            news.connected(db)

        def look(db: Connection) -> None:
            news.look(db)
            cleaning.look(db)

        self._file = SQLiteThread(self._path, SCHEMA, connected=connected, look=look)
        news.deliver = self._file.notify
        try:
            await self._do(lambda db: None)
        except BaseException:
            await self._close()
            raise

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        if self._file is not None:
            with suppress(LogUnavailable, ConfigurationError, TimeoutError):
                async with asyncio.timeout(0.5):
                    if not await self.streams_of(self._process):  # otherwise another process has to end them
                        await self.bury(self._process)
            await self._close()

    async def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.4):
                    await file.aclose()

    async def ready(self) -> bool:
        """See `Store.ready`."""
        mine = "UPDATE processes SET lease = lease WHERE process = ?"
        try:
            await self._do(lambda db: db.execute(mine, [self._process]))
        except (LogUnavailable, ConfigurationError):
            return False
        return self._file is not None and not self._file.is_full

    async def _do(self, work: Callable[[Connection], T], begin: str = _WRITE) -> T:
        if self._file is None:
            raise LogUnavailable("The log is not open.")
        return await self._file.call(work, begin=begin)

    # Streams ----------------------------------------------------------------------------------------------------------

    async def create(self, key: str, stream: NewStream) -> State | None:
        """See `Store.create`."""
        return await self._do(lambda db: self._streams.create(db, key, stream))

    async def write(self, writes: Sequence[Write]) -> Sequence[Written]:
        """See `Store.write`."""
        return await self._do(lambda db: [self._streams.write(db, write) for write in writes])

    async def load(self, key: str, place: int, size: int, *, reader: str = "", tell: bytes = b"") -> Page | None:
        """See `Store.load`."""
        begin = _WRITE if reader else _READ
        return await self._do(lambda db: self._streams.load(db, key, place, size, reader, tell), begin)

    async def leave(self, key: str, reader: str, *, tell: bytes) -> None:
        """See `Store.leave`."""
        await self._do(lambda db: self._streams.leave(db, key, reader, tell))

    async def states(self, keys: Sequence[str]) -> Sequence[State | None]:
        """See `Store.states`."""
        return await self._do(lambda db: self._streams.states(db, keys), _READ)

    async def stop(self, key: str, reason: str, *, tell: bytes) -> State | None:
        """See `Store.stop`."""
        return await self._do(lambda db: self._streams.stop(db, key, reason, tell))

    async def claim(self, key: str, dead: str, writer: str) -> State | None:
        """See `Store.claim`."""
        return await self._do(lambda db: self._streams.claim(db, key, dead, writer))

    async def request(self, key: str) -> bytes:
        """See `Store.request`."""
        query = "SELECT request FROM bodies JOIN streams ON streams.id = stream WHERE key = ?"
        row = await self._do(lambda db: db.execute(query, [key]).fetchone(), _READ)
        return b"" if row is None else bytes(row[0])

    async def find(self, owner: str) -> Sequence[tuple[str, State]]:
        """See `Store.find`."""
        return await self._do(lambda db: self._streams.find(db, owner), _READ)

    async def erase(self, key: str) -> None:
        """See `Store.erase`."""
        await self._do(lambda db: self._streams.erase(db, key))

    # Processes and messages -------------------------------------------------------------------------------------------

    async def renew(self, lease: float) -> Processes:
        """See `Store.renew`."""
        return await self._do(lambda db: self._news.renew(db, lease))

    async def streams_of(self, process: str) -> Sequence[str]:
        """See `Store.streams_of`."""
        query = "SELECT key FROM streams WHERE ending = x'' AND writer > ? AND writer < ?"
        names = [f"{process}.", f"{process}/"]  # "/" follows "." in ASCII
        return await self._do(lambda db: [key for (key,) in db.execute(query, names)], _READ)

    async def bury(self, process: str) -> None:
        """See `Store.bury`."""
        await self._do(lambda db: db.execute("DELETE FROM processes WHERE process = ?", [process]))

    async def follow(self, key: str) -> None:
        """See `Store.follow`."""

        def begin(db: Connection) -> None:
            self._news.read(db)  # what was written before
            self._news.followed.add(key)

        await self._do(begin, _READ)

    async def unfollow(self, keys: Collection[str]) -> None:
        """See `Store.unfollow`."""
        self._news.followed.difference_update(keys)

    async def send(self, process: str, message: bytes) -> int:
        """See `Store.send`."""
        await self._do(lambda db: send(db, process, message))
        return -1


def sqlite_log(config: Config) -> MirrorLog:
    """The log in the file that *config* names. Raises `ConfigurationError` when it is opened."""
    return MirrorLog(SQLiteStore(file_of(config.log)), config, lease=config.log_lease, cipher=config.log_cipher)
