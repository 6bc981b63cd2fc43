"""How many starts a key has had in a moving window of time, in the memory of this process or in an SQLite file."""

from __future__ import annotations

import sqlite3
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock

from quart_openai_sse.limits.sqlite_file import CountsFile

SOON = 0.001
"""The least seconds to wait; never 0, which would let the start pass."""


class MemoryWindow:
    """At most *count* starts per key in any *seconds*. The event loops of all threads of the process can share one.

    The `limits` library has such a storage too, but it looks at every key after each start, each in a call of a thread:
    with 100 keys a start costs 6 ms of CPU time, and with 10,000 keys one pass after the other keeps a core busy.
    """

    def __init__(self, count: int, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._seconds = seconds
        self._clock = clock
        self._starts: OrderedDict[str, deque[float]] = OrderedDict()
        """The times of each key's starts; the key whose last start is the oldest comes first."""
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._starts)

    def take(self, key: str) -> float:
        """Counts a start of *key* and returns 0; if there is no room for it, the seconds until there is."""
        with self._lock:
            now = self._clock()
            over = now - self._seconds
            while self._starts and next(iter(self._starts.values()))[-1] <= over:
                self._starts.popitem(last=False)
            starts = self._starts.setdefault(key, deque())
            while starts and starts[0] <= over:
                starts.popleft()
            if len(starts) >= self._count:
                # Rounded, it can be 0, with which the start would pass.
                return max(starts[0] + self._seconds - now, SOON)
            starts.append(now)
            self._starts.move_to_end(key)
            return 0.0


class SQLiteWindow:
    """The same, for all processes that use the file at *path* with the same *count*, *seconds* and *name*."""

    def __init__(self, path: str | Path, count: int, seconds: float, name: str) -> None:
        self._file = CountsFile(path)
        self._count = count
        self._seconds = seconds
        self._name = f"{name}/{count}/{seconds:g}"

    async def take(self, key: str) -> float:
        """Counts a start of *key* and returns 0; if there is no room for it, the seconds until there is.

        Raises `sqlite3.Error`.
        """
        return await self._file.run(partial(self._take, f"{self._name}/{key}"))

    def close(self) -> None:
        """Closes the file. A further start opens it again."""
        self._file.close()

    def _take(self, key: str, database: sqlite3.Connection) -> float:
        now = time.time()  # that of the machine, which all of these processes share
        over = now - self._seconds
        database.execute("DELETE FROM limits_starts WHERE key = ? AND at <= ?", (key, over))
        [(count, oldest)] = database.execute("SELECT count(*), min(at) FROM limits_starts WHERE key = ?", (key,))
        if count >= self._count:
            return float(max(oldest + self._seconds - now, SOON))
        database.execute("INSERT INTO limits_starts VALUES (?, ?, ?)", (key, now, now + self._seconds))
        # A few of other keys, so that the file does not grow with those that never come back.
        gone = "SELECT rowid FROM limits_starts WHERE until <= ? LIMIT 10"
        database.execute(f"DELETE FROM limits_starts WHERE rowid IN ({gone})", (now,))  # noqa: S608
        return 0.0
