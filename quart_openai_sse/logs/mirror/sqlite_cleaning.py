"""Removing what has expired from an SQLite file, a little at a time."""

from __future__ import annotations

from collections.abc import Callable
from sqlite3 import Connection

from quart_openai_sse.logs.mirror.sqlite_news import KEPT, last_row
from quart_openai_sse.logs.mirror.sqlite_streams import BURY
from quart_openai_sse.logs.mirror.sqlite_thread import transaction

_PAUSE = 5.0  # seconds between two steps, if one was enough
_ROWS, _BYTES = 500, 4 << 20  # that one step removes
_FREE_PAGES = 4096  # that stay in the file for what is written next
_GRACE = 10.0  # seconds: what has expired is removed later, when other processes have read a stream's end

_OLD = (
    "SELECT id, length(body) FROM log WHERE target IS NOT NULL AND id <= :mark "
    "UNION ALL SELECT log.id, coalesce(length(body), 0) FROM streams JOIN log ON stream = streams.id "
    "WHERE ending != x'' AND kept AND expires <= :before LIMIT :rows"
)
_BODIES = (
    "DELETE FROM bodies WHERE stream IN (SELECT id FROM streams WHERE ending != x'' AND kept AND expires <= :before "
    "AND NOT EXISTS (SELECT 1 FROM log WHERE stream = streams.id))"
)
_EMPTY = "ending != x'' AND kept AND expires <= :before AND NOT EXISTS (SELECT 1 FROM log WHERE stream = streams.id)"
_VANISHED = (
    "DELETE FROM streams WHERE id IN "
    "(SELECT id FROM streams WHERE ending != x'' AND NOT kept AND vanishes <= :before LIMIT :rows)"
)
# The streams of a process that died, of which no other process has ever come to claim them.
_ABANDONED = (
    "UPDATE streams SET ending = x'ff', holds_key = 0, expires = 0 WHERE ending = x'' AND expires <= :before "
    "AND substr(writer, 1, instr(writer, '.') - 1) NOT IN (SELECT process FROM processes)"
)


class Cleaning:
    """Every process does it, in short transactions between others. For the clocks see `Streams`."""

    def __init__(self, clock: Callable[[], float], steady: Callable[[], float]) -> None:
        self._clock = clock
        self._steady = steady
        self._due = 0.0
        self._marked = 0.0
        self._marks = (0, 0)  # the last rows of the log, `KEPT` seconds apart

    def look(self, db: Connection) -> None:
        """Takes a step if it is time for one."""
        now = self._steady()
        if now < self._due:
            return
        self._due = now + _PAUSE  # also if it fails
        if now - self._marked >= KEPT:
            self._marked, self._marks = now, (self._marks[1], last_row(db))
        more = transaction(db, self._step)
        (free,), (pages,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("freelist_count", "page_count"))
        if free > max(_FREE_PAGES, pages // 2):
            # A script, because `execute` of Python 3.11 takes one step of a statement without columns: one page.
            db.executescript(f"PRAGMA incremental_vacuum({_ROWS})")
            more = True
        if more:
            self._due = now

    def _step(self, db: Connection) -> bool:
        """Removes rows. Returns whether there may be more."""
        values = {"mark": self._marks[0], "before": self._clock() - _GRACE, "rows": _ROWS}
        db.execute(_ABANDONED, values)
        rows = db.execute(_OLD, values).fetchall()
        removed, size = [], 0
        for row, length in rows:
            if size > _BYTES:
                break
            removed.append([row])
            size += length
        db.executemany("DELETE FROM log WHERE id = ?", removed)
        db.execute(_BODIES, values)
        db.execute(f"{BURY} {_EMPTY}", values)
        vanished = db.execute(_VANISHED, values).rowcount
        return len(removed) < len(rows) or _ROWS in (len(rows), vanished)
