"""Counts that the workers of one machine share by an SQLite file."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from quart_openai_sse.limits import Holding, Leases, Others, Refusal, Wish
from quart_openai_sse.limits.sqlite_file import CountsFile

_SKEW = 60_000  # milliseconds by which the end of a window may be later than expected, and is believed


class SQLiteCounts:
    """Counts of all workers that use the same file at *path*. *lease* is in seconds, by the machine's clock."""

    def __init__(self, path: str | Path, *, lease: float = 15) -> None:
        self.lease = lease
        self._file = CountsFile(path)
        self._process = secrets.token_hex(8)

    async def renew(self) -> Leases:
        """See `SharedCounts.renew`."""
        return await self._file.run(self._renew)

    async def count(self, holdings: Sequence[Holding]) -> Sequence[Others]:
        """See `SharedCounts.count`."""
        return await self._file.run(lambda database: [self._count(database, holding) for holding in holdings])

    async def aclose(self) -> None:
        """See `SharedCounts.aclose`."""
        with suppress(sqlite3.Error):
            await self._file.run(self._leave)
        self._file.close()

    def _renew(self, database: sqlite3.Connection) -> Leases:
        now = time.time()
        database.execute("DELETE FROM limits_processes WHERE until <= ?", (now,))
        # Of the dead. This process tells again what it holds if it was among them.
        database.execute("DELETE FROM limits_held WHERE process NOT IN (SELECT process FROM limits_processes)")
        alive = {process for (process,) in database.execute("SELECT process FROM limits_processes")}
        database.execute("REPLACE INTO limits_processes VALUES (?, ?)", (self._process, now + self.lease))
        ended = "SELECT owner FROM limits_windows WHERE until <= ?"
        database.execute(f"DELETE FROM limits_spent WHERE owner IN ({ended})", (now * 1000,))  # noqa: S608
        database.execute("DELETE FROM limits_windows WHERE until <= ?", (now * 1000,))
        return Leases(known=self._process in alive, alive=frozenset({*alive, self._process}))

    def _leave(self, database: sqlite3.Connection) -> None:
        database.execute("DELETE FROM limits_processes WHERE process = ?", (self._process,))
        database.execute("DELETE FROM limits_held WHERE process = ?", (self._process,))

    def _count(self, database: sqlite3.Connection, holding: Holding) -> Others:
        now = time.time()
        owner = holding.owner
        streams, readers, reserved = self._of_others(database, owner, "", now)
        spent, own, window = self._tokens(database, holding, int(now * 1000))
        reading = {stream: self._of_others(database, owner, stream, now)[1] for stream in holding.reading}
        mine = _Mine(holding, left=holding.most_tokens - spent - own)
        refusals = [mine.take(wish, streams, readers, reserved, reading) for wish in holding.wishes]
        self._tell(database, owner, "", (mine.streams, mine.readers, mine.reserved))
        for stream, count in mine.reading.items():
            self._tell(database, owner, stream, (0, count, 0))
        return Others(
            refusals=refusals,
            spent=spent,
            reserved=reserved,
            window=window,
            remaining=max(0, window - int(now * 1000)),
        )

    def _of_others(self, database: sqlite3.Connection, owner: str, stream: str, now: float) -> tuple[int, int, int]:
        """What other living processes hold."""
        found: tuple[int, int, int] = database.execute(
            "SELECT coalesce(sum(streams), 0), coalesce(sum(readers), 0), coalesce(sum(reserved), 0)"
            " FROM limits_held JOIN limits_processes USING (process)"
            " WHERE owner = ? AND stream = ? AND process <> ? AND until > ?",
            (owner, stream, self._process, now),
        ).fetchone()
        return found

    def _tokens(self, database: sqlite3.Connection, holding: Holding, now: int) -> tuple[int, int, int]:
        """The tokens that others and this process have spent in the window, and its end in milliseconds."""
        owner, claimed = holding.owner, holding.window
        [window] = database.execute("SELECT max(until) FROM limits_windows WHERE owner = ?", (owner,)).fetchone()
        if window is None or window <= now:
            window = 0
            database.execute("DELETE FROM limits_spent WHERE owner = ?", (owner,))
        own = holding.spent if not claimed or claimed > now else 0  # what was spent in an ended window is over
        if own and not window:
            window = now + holding.remaining
            if claimed and claimed < window + _SKEW:
                window = claimed
        elif own and 0 < claimed < window:
            window = claimed
        if window and (not claimed or claimed > now):
            database.execute("REPLACE INTO limits_windows VALUES (?, ?)", (owner, window))
            database.execute("REPLACE INTO limits_spent VALUES (?, ?, ?)", (owner, self._process, own))
        [spent] = database.execute(
            "SELECT coalesce(sum(spent), 0) FROM limits_spent WHERE owner = ? AND process <> ?", (owner, self._process)
        ).fetchone()
        return spent, own, window

    def _tell(self, database: sqlite3.Connection, owner: str, stream: str, held: tuple[int, int, int]) -> None:
        if any(held):
            database.execute(
                "REPLACE INTO limits_held VALUES (?, ?, ?, ?, ?, ?)", (owner, stream, self._process, *held)
            )
        else:
            database.execute(
                "DELETE FROM limits_held WHERE owner = ? AND stream = ? AND process = ?", (owner, stream, self._process)
            )


class _Mine:
    """What this process holds, while its wishes are granted."""

    def __init__(self, holding: Holding, *, left: int) -> None:
        self.streams, self.readers, self.reserved = holding.streams, holding.readers, holding.reserved
        self.reading = dict(holding.reading)
        self._left = left
        self._tokens_count = holding.most_tokens >= 0

    def take(self, wish: Wish, streams: int, readers: int, reserved: int, reading: Mapping[str, int]) -> Refusal:
        """Grants *wish* beside what the others have, or names the limit that it would exceed."""
        if wish.streams and 0 <= wish.most_streams < streams + self.streams + wish.streams:
            return "streams"
        if wish.stream:
            if 0 <= wish.most_stream_readers <= reading[wish.stream] + self.reading[wish.stream]:
                return "stream_readers"
            if 0 <= wish.most_readers <= readers + self.readers:
                return "readers"
        if wish.tokens and self._tokens_count and self._too_many(wish, reserved):
            return "tokens"
        self.streams += wish.streams
        self.reserved += wish.tokens - wish.instead
        if wish.stream:
            self.readers += 1
            self.reading[wish.stream] += 1
        return ""

    def _too_many(self, wish: Wish, reserved: int) -> bool:
        reserved += self.reserved - wish.instead
        if 0 < wish.prompt <= wish.instead:
            reserved = 0
        return self._left <= max(0, reserved) or wish.prompt > self._left - reserved
