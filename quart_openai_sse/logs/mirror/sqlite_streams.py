"""The streams in an SQLite file: its tables, and what a store does with a stream within one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from sqlite3 import Connection, Row
from typing import Literal

from quart_openai_sse.logs.mirror import NewStream, Page, State, Write, Written

# A rolling deploy runs two versions on one file. A newer version may add tables, indexes, and columns that have a
# default: the older one names the columns in each of its statements. For any other change `user_version` is increased
# (see `sqlite_file`), and neither version opens a file of the other.
SCHEMA = """
CREATE TABLE IF NOT EXISTS streams (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, writer TEXT NOT NULL, digest TEXT NOT NULL,
    owner TEXT NOT NULL, created REAL NOT NULL, life REAL NOT NULL, count INTEGER NOT NULL DEFAULT 0,
    ending BLOB NOT NULL DEFAULT x'', decided BLOB NOT NULL DEFAULT x'', stop TEXT NOT NULL DEFAULT '',
    attempt INTEGER NOT NULL DEFAULT 1, readers TEXT NOT NULL DEFAULT '', left_at REAL NOT NULL,
    ended_at REAL NOT NULL DEFAULT 0, expires REAL NOT NULL, vanishes REAL NOT NULL DEFAULT 0,
    holds_key INTEGER NOT NULL DEFAULT 1, kept INTEGER NOT NULL DEFAULT 1);
CREATE INDEX IF NOT EXISTS running ON streams (writer) WHERE ending = x'';
CREATE INDEX IF NOT EXISTS owned ON streams (owner, created) WHERE owner != '';
CREATE INDEX IF NOT EXISTS expiring ON streams (expires) WHERE ending != x'' AND kept;
CREATE INDEX IF NOT EXISTS vanishing ON streams (vanishes) WHERE ending != x'' AND NOT kept;
CREATE TABLE IF NOT EXISTS bodies (stream INTEGER PRIMARY KEY, about BLOB NOT NULL, request BLOB NOT NULL DEFAULT x'');
CREATE TABLE IF NOT EXISTS log (
    id INTEGER PRIMARY KEY AUTOINCREMENT, stream INTEGER, place INTEGER, target TEXT, body BLOB);
CREATE INDEX IF NOT EXISTS batches ON log (stream, place) WHERE stream IS NOT NULL;
CREATE INDEX IF NOT EXISTS messages ON log (id) WHERE target IS NOT NULL;
CREATE TABLE IF NOT EXISTS processes (process TEXT PRIMARY KEY, beat INTEGER NOT NULL, lease REAL NOT NULL)
"""
# `log` has everything that processes hear, in the order in which it was written: a batch has a stream, the place of its
# last entry, and a body; the news that a stream has ended has a stream alone; a message has a target and a body. What
# changes with each write is in `streams`, and what is large in the other tables, because SQLite writes whole rows.

BURY = (
    "UPDATE streams SET kept = 0, owner = '', expires = 0, vanishes = vanishes * holds_key, decided = x'', "
    "ending = substr(ending, 1, 1) WHERE "
)
"""Makes tombstones. Of an end only the first byte is left: the rest may quote the stream."""

_SELECT = (
    "SELECT id, key, writer, digest, life, count, ending, decided, stop, attempt, readers, left_at, ended_at, expires, "
    "vanishes, holds_key FROM streams WHERE "
)


class Streams:
    """What `Store` says of streams, within a transaction.

    *clock* is Unix time, by which ended streams expire. *steady* is a clock that nobody sets and that all processes of
    a host share.
    """

    def __init__(self, clock: Callable[[], float], steady: Callable[[], float]) -> None:
        self.clock = clock
        self.steady = steady

    def create(self, db: Connection, key: str, stream: NewStream) -> State | None:
        """See `Store.create`."""
        row = self._row(db, key)
        if row is not None and row["writer"] == stream.writer:
            return None
        if row is not None and row["holds_key"]:
            return self._state(db, row)
        for (old,) in db.execute("SELECT id FROM streams WHERE key = ?", [key]).fetchall():
            _empty(db, old)
            db.execute("DELETE FROM streams WHERE id = ?", [old])
        values = [key, stream.writer, stream.digest, stream.owner, stream.created, stream.life]
        new = db.execute(
            "INSERT INTO streams (key, writer, digest, owner, created, life, left_at, expires) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [*values, self.steady(), self.clock() + stream.life],
        )
        db.execute("INSERT INTO bodies (stream, about) VALUES (?, ?)", [new.lastrowid, stream.about])
        return None

    def write(self, db: Connection, write: Write) -> Written:
        """See `Store.write`."""
        row = self._row(db, write.key)
        if row is None:
            return Written(result="gone")
        result = self._add(db, row, write)
        count = write.count if result == "done" and not row["ending"] else row["count"]
        return Written(result=result, count=count, stop=row["stop"], readers=_readers(row))

    def _add(self, db: Connection, row: Row, write: Write) -> Literal["done", "moved", "lost"]:
        if row["writer"] != write.writer:
            return "lost"
        if row["ending"]:  # nothing follows an end, but what came before it may come again
            return "done" if write.count <= row["count"] and write.end in (b"", row["ending"]) else "lost"
        if row["count"] not in (write.place, write.count):
            return "moved"
        if write.batch and row["count"] == write.place:
            db.execute("INSERT INTO log (stream, place, body) VALUES (?, ?, ?)", [row["id"], write.count, write.batch])
        if write.request:
            db.execute("UPDATE bodies SET request = ? WHERE stream = ?", [write.request, row["id"]])
        expires = self.clock() + (write.retention if write.end else row["life"])
        db.execute(
            "UPDATE streams SET count = ?, decided = ?, expires = ? WHERE id = ?",
            [write.count, row["decided"] or write.decided, expires, row["id"]],
        )
        if write.end:
            vanishes = expires + (write.tombstone if write.holds_key else 0.0)
            db.execute(
                "UPDATE streams SET ending = ?, ended_at = ?, vanishes = ?, holds_key = ?, readers = '' WHERE id = ?",
                [write.end, self.clock(), vanishes, write.holds_key, row["id"]],
            )
            db.execute("UPDATE bodies SET request = x'' WHERE stream = ?", [row["id"]])
            db.execute("INSERT INTO log (stream) VALUES (?)", [row["id"]])
        return "done"

    def load(self, db: Connection, key: str, place: int, size: int, reader: str, tell: bytes) -> Page | None:
        """See `Store.load`."""
        row = self._row(db, key)
        if row is None:
            return None
        if reader and not row["ending"]:
            if reader not in row["readers"].split():
                db.execute("UPDATE streams SET readers = readers || ' ' || ? WHERE id = ?", [reader, row["id"]])
                row = self._row(db, key) or row
            send(db, _process(row), tell)
        state, batches = self._state(db, row), []
        behind = "SELECT body FROM log WHERE stream = ? AND place > ? ORDER BY place"
        for (body,) in db.execute(behind, [row["id"], place]) if state.kept else ():
            batches.append(body)
            size -= len(body)
            if size <= 0:
                break
        return Page(state=state, batches=batches)

    def leave(self, db: Connection, key: str, reader: str, tell: bytes) -> None:
        """See `Store.leave`."""
        row = self._row(db, key)
        if row is None:
            return
        readers = row["readers"].split()
        if reader in readers:
            readers.remove(reader)
            values = [" ".join(readers), self.steady(), row["id"]]
            db.execute("UPDATE streams SET readers = ?, left_at = ? WHERE id = ?", values)
        send(db, _process(row), tell)

    def states(self, db: Connection, keys: Sequence[str]) -> Sequence[State | None]:
        """See `Store.states`."""
        rows = [self._row(db, key) for key in keys]
        return [None if row is None else self._state(db, row, about=False) for row in rows]

    def stop(self, db: Connection, key: str, reason: str, tell: bytes) -> State | None:
        """See `Store.stop`."""
        row = self._row(db, key)
        if row is None:
            return None
        if not row["ending"]:
            db.execute("UPDATE streams SET stop = ? WHERE id = ? AND stop = ''", [reason, row["id"]])
            send(db, _process(row), tell)
        return self._state(db, row)

    def claim(self, db: Connection, key: str, dead: str, writer: str) -> State | None:
        """See `Store.claim`."""
        row = self._row(db, key)
        if row is None or row["ending"] or (row["writer"] != writer and _process(row) != dead):
            return None
        if row["writer"] != writer:
            db.execute("UPDATE streams SET writer = ?, attempt = attempt + 1 WHERE id = ?", [writer, row["id"]])
        row = self._row(db, key)
        return None if row is None else self._state(db, row)

    def find(self, db: Connection, owner: str) -> Sequence[tuple[str, State]]:
        """See `Store.find`."""
        rows = db.execute(f"{_SELECT} owner = ? AND owner != '' ORDER BY created DESC", [owner]).fetchall()
        found = [(row["key"], self._state(db, row)) for row in rows]
        return [(key, state) for key, state in found if state.kept]

    def erase(self, db: Connection, key: str) -> None:
        """See `Store.erase`."""
        row = self._row(db, key)
        if row is not None and row["ending"]:
            _empty(db, row["id"])
            db.execute(f"{BURY} id = ?", [row["id"]])

    def _row(self, db: Connection, key: str) -> Row | None:
        row: Row | None = db.execute(f"{_SELECT} key = ?", [key]).fetchone()
        return None if row is None or (row["ending"] and row["vanishes"] <= self.clock()) else row

    def _state(self, db: Connection, row: Row, *, about: bool = True) -> State:
        now = self.clock()
        kept = not row["ending"] or row["expires"] > now
        bodies = db.execute("SELECT about FROM bodies WHERE stream = ?", [row["id"]]) if kept and about else ()
        return State(
            **{name: row[name] for name in ("writer", "digest", "count", "decided", "stop", "attempt")},
            about=next((body["about"] for body in bodies), b""),
            end=row["ending"] if kept else row["ending"][:1],
            readers=_readers(row),
            kept=kept,
            ended_ago=max(0.0, now - row["ended_at"]) if row["ending"] else 0.0,
            left_ago=max(0.0, self.steady() - row["left_at"]),
        )


def send(db: Connection, process: str, message: bytes) -> None:
    """See `Store.send`."""
    if message:
        db.execute("INSERT INTO log (target, body) VALUES (?, ?)", [process, message])


def _process(row: Row) -> str:
    return str(row["writer"]).rpartition(".")[0]


def _readers(row: Row) -> tuple[str, ...]:
    return tuple(each for each in row["readers"].split() if each != _process(row))


def _empty(db: Connection, stream: int) -> None:
    db.execute("DELETE FROM log WHERE stream = ?", [stream])
    db.execute("DELETE FROM bodies WHERE stream = ?", [stream])
