"""What other processes have written to an SQLite file: batches, ends, messages, and that they are alive."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from sqlite3 import Connection, Row

from quart_openai_sse.logs.mirror import Hear, Processes
from quart_openai_sse.logs.mirror.sqlite_thread import transaction

KEPT = 30.0
"""Seconds for which messages are kept at least."""

_MOST = 10_000  # rows that are read at once; if there are more, the streams are to be read again


class News:
    """The news for one process. *deliver* has a function called by the event loop. *steady* is a clock.

    Each method but `hear_again` is called in the thread that has the connection.
    """

    def __init__(
        self,
        process: str,
        hear: Hear,
        again: Callable[[], object],
        steady: Callable[[], float],
    ) -> None:
        self.followed: set[str] = set()
        self.deliver: Callable[..., object]
        self._process = process
        self._hear = hear
        self._again = again
        self._steady = steady
        self._last = 0  # the id of the last row that was read
        self._seen: tuple[int, int] | None = None
        self._looked: float | None = None
        self._missed = False
        self._beats: dict[str, tuple[int, float]] = {}  # the beat of each process, and when it was seen first

    def connected(self, db: Connection) -> None:
        """Begins behind what is in the file."""
        db.row_factory = Row
        self._missed = self._looked is not None
        self._last, self._seen, self._looked = last_row(db), None, self._steady()

    def look(self, db: Connection) -> None:
        """Delivers what is new. As long as nobody writes, it asks SQLite for one number."""
        now = self._steady()
        if self._looked is not None and now - self._looked > KEPT / 2:  # the process was frozen
            self._missed = True
        (version,) = db.execute("PRAGMA data_version").fetchone()  # of the changes by others
        seen = version, db.total_changes
        if seen != self._seen or self._missed:
            transaction(db, self.read, "BEGIN")
            self._seen = seen
        self._looked = now

    def read(self, db: Connection) -> None:
        """Delivers what is new."""
        self._notice(db)
        new = "SELECT log.id, target, key FROM log LEFT JOIN streams ON streams.id = stream WHERE log.id > ? LIMIT ?"
        rows = db.execute(new, [self._last, _MOST]).fetchall()
        body = "SELECT coalesce(body, ending) FROM log LEFT JOIN streams ON streams.id = stream WHERE log.id = ?"
        news = [
            (row["key"] or "", db.execute(body, [row["id"]]).fetchone()[0])
            for row in rows
            if row["key"] in self.followed or row["target"] in ("", self._process)
        ]
        missed, self._missed = self._missed or len(rows) == _MOST, False
        self._last = last_row(db) if missed else rows[-1]["id"] if rows else self._last
        if news or missed:
            self.deliver(self._tell, news, missed)

    def renew(self, db: Connection, lease: float) -> Processes:
        """See `Store.renew`."""
        mine = [lease, self._process]
        known = db.execute("UPDATE processes SET beat = beat + 1, lease = ? WHERE process = ?", mine).rowcount > 0
        if not known:  # a beat that nobody has seen yet
            new = [*mine, secrets.randbits(48)]
            db.execute("INSERT INTO processes (lease, process, beat) VALUES (?, ?, ?)", new)
        leases = self._notice(db)
        now = self._steady()
        alive = frozenset(process for process, lease in leases.items() if now - self._beats[process][1] < lease)
        return Processes(known=known, alive=alive, overdue=frozenset(leases) - alive)

    def _notice(self, db: Connection) -> dict[str, float]:
        """The leases of the processes. Remembers when each beat was seen first.

        No two clocks are compared, and no clock is set: a process is alive as long as its beat changes.
        """
        rows = db.execute("SELECT process, beat, lease FROM processes").fetchall()
        before, now = self._beats, self._steady()
        self._beats = {
            process: before[process] if process in before and before[process][0] == beat else (beat, now)
            for process, beat, _ in rows
        }
        return {process: lease for process, _, lease in rows}

    def _tell(self, news: list[tuple[str, bytes]], missed: bool) -> None:
        for key, message in news:
            if not key or key in self.followed:
                self._hear(key, message)
        if missed:
            self._again()


def last_row(db: Connection) -> int:
    """The id of the row of `log` that was written last."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'log'").fetchone()
    return 0 if row is None else int(row[0])
