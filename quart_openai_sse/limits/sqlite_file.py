"""An SQLite file in which the workers of one machine count."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TypeVar

T = TypeVar("T")

_PATIENCE = 0.9  # seconds to wait for another process's transaction

_TABLES = """
CREATE TABLE IF NOT EXISTS limits_processes (process TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS limits_held (
    owner TEXT, stream TEXT, process TEXT, streams INTEGER, readers INTEGER, reserved INTEGER,
    PRIMARY KEY (owner, stream, process)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS limits_windows (owner TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS limits_spent (
    owner TEXT, process TEXT, spent INTEGER, PRIMARY KEY (owner, process)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS limits_starts (key TEXT NOT NULL, at REAL NOT NULL, until REAL NOT NULL);
CREATE INDEX IF NOT EXISTS limits_starts_of ON limits_starts (key, at);
CREATE INDEX IF NOT EXISTS limits_starts_until ON limits_starts (until);
"""


class CountsFile:
    """An SQLite file with the tables of limits. Calls run one after the other, in a thread of their own."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._lock = Lock()
        self._thread: _Thread | None = None

    async def run(self, call: Callable[[sqlite3.Connection], T]) -> T:
        """The result of *call* within a transaction that no other process can come between."""
        with self._lock:  # event loops of several threads may share a file
            thread = self._thread = self._thread or _Thread(self._path)
            running = thread.executor.submit(thread.transact, call)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Closes the file, once the calls that run are done. A further call opens it again."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.executor.submit(thread.close)
            thread.executor.shutdown(wait=False)


class _Thread:
    """A thread with its connection."""

    def __init__(self, path: str | Path) -> None:
        self.executor = ThreadPoolExecutor(1, "limits")
        self._path = path
        self._database: sqlite3.Connection | None = None

    def transact(self, call: Callable[[sqlite3.Connection], T]) -> T:
        if self._database is None:
            until = time.monotonic() + _PATIENCE
            while self._database is None:
                try:
                    self._database = self._open()
                except sqlite3.OperationalError:
                    # For the change to WAL, which another process makes as well, SQLite does not wait.
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.01)
        self._database.execute("BEGIN IMMEDIATE")
        try:
            result = call(self._database)
            self._database.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise
        return result

    def close(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def __del__(self) -> None:
        self.close()  # its event loop was closed before the counts, as in a test that does not serve its app

    def _open(self) -> sqlite3.Connection:
        with suppress(FileExistsError):  # a new file is for its owner alone
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        database = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("BEGIN IMMEDIATE")  # two processes may open a new file at once
            for statement in _TABLES.split(";"):
                database.execute(statement)
            database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        return database
