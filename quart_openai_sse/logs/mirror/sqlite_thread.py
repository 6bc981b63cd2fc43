"""An SQLite file, worked on by one thread of its own: nothing that may wait for a disk runs on the event loop."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from quart_openai_sse.errors import ConfigurationError, LogUnavailable
from quart_openai_sse.logs.mirror.sqlite_file import connect, create_file, identity, without_folder

T = TypeVar("T")

POLL = 0.02
"""Seconds between two looks at what other processes have written."""

_TURN_TIMEOUT = 3.0  # seconds until work has its turn
_DISK_TIMEOUT = 6.0  # seconds after which the caller of a disk that does not answer goes on
_REOPEN_AFTER = 1.0  # seconds in which every process notices that the file was removed, before one creates it again

_FULL_FOR = 3.0  # seconds: streams that could not be written are tried again every two seconds

_FAILURES = {
    sqlite3.SQLITE_BUSY: "is locked by another process",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_FULL: "cannot grow, because the disk is full",
    sqlite3.SQLITE_IOERR: "cannot be read or written",
    sqlite3.SQLITE_NOTADB: "is not an SQLite database",
    sqlite3.SQLITE_READONLY: "is read-only",
}


class _Job(NamedTuple):
    work: Callable[[sqlite3.Connection], Any]
    begin: str
    until: float
    done: asyncio.Future[Any]


class SQLiteThread:
    """The file at *path*, with the tables of *schema*: statements that do nothing if they are run again.

    In the thread, *connected* is called with each new connection, and *look* with the connection every `POLL` seconds.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        connected: Callable[[sqlite3.Connection], object],
        look: Callable[[sqlite3.Connection], object],
    ) -> None:
        self._path = path
        self._schema = schema
        self._connected = connected
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._db: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._open_at = 0.0
        self._failure = ""
        self._full_until = 0.0
        self.was_replaced = False
        """Whether the file was removed, or another one put into its place, so that streams may be missing."""
        self._closed: asyncio.Future[None] = self._loop.create_future()
        # A daemon: a disk that does not answer must not keep the process from ending.
        threading.Thread(target=self._run, name=f"SQLite {path.name}", daemon=True).start()

    async def call(self, work: Callable[[sqlite3.Connection], T], *, begin: str = "BEGIN IMMEDIATE") -> T:
        """Runs *work* in a transaction, which is done as a whole or not at all, and returns its result.

        Raises `LogUnavailable`, or `ConfigurationError` if the file can never be used.
        """
        done: asyncio.Future[T] = self._loop.create_future()
        timer = self._loop.call_later(_DISK_TIMEOUT, self._give_up, done, context=Context())
        self._jobs.put(_Job(work, begin, time.monotonic() + _TURN_TIMEOUT, done))
        try:
            return await done
        finally:
            timer.cancel()

    @property
    def is_full(self) -> bool:
        """Whether something could not be written a moment ago, because the disk is full.

        What takes no more room can be written nevertheless, so that no single try could tell.
        """
        return time.monotonic() < self._full_until

    async def aclose(self) -> None:
        """Closes the file after what was to be done before."""
        self._jobs.put(None)
        await asyncio.shield(self._closed)

    def _give_up(self, done: asyncio.Future[Any]) -> None:
        _settle(done, None, LogUnavailable(f"The disk with {self._path.name} does not answer."))

    def notify(self, function: Callable[..., object], *arguments: Any) -> None:
        """Has *function* called by the event loop. For code that runs in the thread."""
        with suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(partial(function, *arguments), context=Context())

    # In the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        look_at = time.monotonic()
        while not self._loop.is_closed():
            with suppress(queue.Empty):
                job = self._jobs.get(timeout=max(0.0, look_at - time.monotonic()))
                if job is None:
                    break
                if not job.done.done():
                    self.notify(_settle, job.done, *self._attempt(job))
            if time.monotonic() >= look_at:
                self._look_around()
                look_at = time.monotonic() + POLL
        self._disconnect()
        self.notify(_settle, self._closed, None, None)

    def _look_around(self) -> None:
        try:
            self._guarded(self._look)
        except (LogUnavailable, ConfigurationError):
            pass  # the next look may succeed
        except Exception as error:  # a fault of ours, which must not end the thread
            self._disconnect()
            context = {"message": f"Looking for news in {self._path} failed.", "exception": error}
            self.notify(self._loop.call_exception_handler, context)

    def _attempt(self, job: _Job) -> tuple[Any, Exception | None]:
        if time.monotonic() > job.until:  # what was before it has waited in vain
            return None, LogUnavailable(self._failure or f"{self._path.name} is too slow.")
        try:
            return self._guarded(lambda db: transaction(db, job.work, job.begin)), None
        except Exception as error:
            return None, error

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs *work* with a connection to the file that is there now. Raises `LogUnavailable` for SQLite's errors."""
        try:
            result = work(self._connection())
            self._failure = ""
            return result
        except sqlite3.Error as error:
            # `IOERR` and others have many extended codes, which have the code in their lowest byte.
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            self._failure = f"{self._path.name} {_FAILURES.get(code, f'failed: {error}')}."
            if code == sqlite3.SQLITE_FULL:
                self._full_until = time.monotonic() + _FULL_FOR
            if code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL):
                self._disconnect()
            raise LogUnavailable(self._failure) from error

    def _connection(self) -> sqlite3.Connection:
        if self._db is not None:
            if identity(self._path) == self._identity:
                return self._db
            self._failure = f"{self._path.name} was removed or replaced."
            self._disconnect()
        if time.monotonic() < self._open_at and identity(self._path) != self._identity:
            raise LogUnavailable(self._failure)
        try:
            create_file(self._path)
            file = identity(self._path)
            self._db = connect(self._path, self._schema)
        except ConfigurationError as error:
            if self._identity is None:
                raise
            # It could be used before, so it may be put right.
            self._failure = without_folder(error.message, self._path)
            self._open_at = time.monotonic() + _REOPEN_AFTER
            raise LogUnavailable(self._failure) from error
        self.was_replaced = self.was_replaced or self._identity not in (None, file)
        self._identity = file
        self._connected(self._db)
        return self._db

    def _disconnect(self) -> None:
        self._open_at = time.monotonic() + _REOPEN_AFTER
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if not future.done():
        future.set_result(result) if error is None else future.set_exception(error)


def transaction(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T], begin: str = "BEGIN IMMEDIATE") -> T:
    """Runs *work* in a transaction, and returns its result."""
    db.execute(begin)
    try:
        result = work(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite ends it itself after some errors
            db.execute("ROLLBACK")
        raise
    return result
