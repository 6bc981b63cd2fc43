"""An example of a stream log of your own: streams in an SQLite file, for all processes of one machine.

It is written to be read. Its readers and its writers look into the file every *poll* seconds, and the event loop waits
for each look and each append: that is enough for a few streams at a time.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec import msgpack

from quart_openai_sse import errors
from quart_openai_sse.flow import Flow
from quart_openai_sse.logs import END_ID, About, Batch, End, Entry, LostStream, OnLost, Reader, Writer
from quart_openai_sse.logs.endings import wait_for_ends
from quart_openai_sse.logs.entries import parse_place
from quart_openai_sse.logs.memory import MemoryLog

SCHEMA = """
    PRAGMA journal_mode = TRUNCATE;
    PRAGMA synchronous = OFF;  -- after a power failure the file is to be deleted: streams do not live long
    CREATE TABLE IF NOT EXISTS streams (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE, digest TEXT, owner TEXT,
        thread TEXT, about BLOB, process TEXT, attempt INTEGER DEFAULT 1, last INTEGER DEFAULT 0,
        bytes INTEGER DEFAULT 0, stop TEXT, request BLOB, decided BLOB, end BLOB, ended REAL);
    CREATE TABLE IF NOT EXISTS entries (stream INTEGER, place INTEGER, entry BLOB, PRIMARY KEY (stream, place));
    CREATE TABLE IF NOT EXISTS readers (id TEXT PRIMARY KEY, stream INTEGER, process TEXT);
    CREATE TABLE IF NOT EXISTS processes (id TEXT PRIMARY KEY, seen REAL);
"""
LOST = End("failed", "producer_lost", errors.ErrorValue.of(errors.ProducerLost("Its process has ended.")))
BATCH, TOMBSTONE = 256 << 10, 3600
MINE = "id = ? AND end IS NULL AND process = ?"
"""A stream that runs in a process."""
ENDED = "end = coalesce(decided, ?), ended = ?, request = NULL"


class SQLiteLog:
    """A `StreamLog` in the file *path*. A process that was not seen for *lease* seconds is taken for dead."""

    shared = True

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 16 << 20,
        retention: float = 300,
        lease: float = 15,
        poll: float = 0.01,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path, self.max_bytes, self.retention, self.lease, self.poll = path, max_bytes, retention, lease, poll
        self.clock = clock
        self.process = secrets.token_hex(8)
        self.writers: set[SQLiteWriter] = set()
        self._on_lost: OnLost | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._passing = MemoryLog()  # a passing stream is read by the request that has started it, so in this process
        self._db: sqlite3.Connection | None = None

    @property
    def size(self) -> int:
        return self._passing.size

    async def open(self) -> None:
        if self._db is not None:
            return
        self._db = sqlite3.connect(self.path, timeout=5 * self.poll, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        try:
            self._db.executescript(SCHEMA)
            self.clean()
        except (sqlite3.Error, errors.LogUnavailable) as error:
            self._db.close()
            self._db = None
            raise errors.LogUnavailable(f"{self.path}: {error}.") from error
        self._looking = asyncio.create_task(self._look())

    async def ready(self) -> bool:
        with suppress(errors.LogUnavailable), self.transaction():
            return True
        return False

    async def aclose(self) -> None:
        if self._db is not None:
            self._looking.cancel()
            for task in self._ending:
                task.cancel()
            with suppress(errors.LogUnavailable), self.transaction() as db:
                db.execute("DELETE FROM processes WHERE id = ?", [self.process])
            self._db.close()
            self._db = None
        await self._passing.aclose()

    async def create(self, key: str, *, about: About, digest: str, retain: bool) -> Writer | None:
        if not retain:
            return await self._passing.create(key, about=about, digest=digest, retain=False)
        with self.transaction() as db:
            stream = db.execute("SELECT * FROM streams WHERE key = ?", [key]).fetchone()
            end = stream and decode_end(stream)
            if stream is not None and (stream["last"] or end is None or end.outcome != "failed"):
                if stream["digest"] != digest:
                    raise errors.KeyReused("This Idempotency-Key was used before with another body.")
                return None
            values = [key, digest, about.owner, about.thread, msgpack.encode(about), self.process]
            columns = "(key, digest, owner, thread, about, process)"
            created = db.execute(f"REPLACE INTO streams {columns} VALUES (?, ?, ?, ?, ?, ?)", values)
            return SQLiteWriter(self, created.lastrowid)

    async def read(self, key: str, *, after: str = "", heartbeat: float | None = None) -> Reader:
        with suppress(errors.StreamNotFound):
            return await self._passing.read(key, after=after, heartbeat=heartbeat)
        with self.transaction() as db:
            stream = self._kept(db, key)
            at_end = after == END_ID and stream["end"] is not None
            place = stream["last"] if at_end else parse_place(after, last=stream["last"])
            reader = SQLiteReader(self, stream, place, at_end=at_end, heartbeat=heartbeat)
            db.execute("INSERT INTO readers VALUES (?, ?, ?)", [reader.id, stream["id"], self.process])
        return reader

    async def stop(self, key: str, reason: str) -> None:
        with suppress(errors.StreamNotFound):
            await self._passing.stop(key, reason)
            return
        with suppress(errors.StreamExpired), self.transaction() as db:
            stream = self._kept(db, key)
            db.execute("UPDATE streams SET stop = coalesce(stop, ?) WHERE id = ?", [reason, stream["id"]])

    async def tail(self, key: str) -> tuple[str, bool]:
        with suppress(errors.StreamNotFound):
            return await self._passing.tail(key)
        with self.transaction() as db:
            stream = self._kept(db, key)
            return str(stream["last"] or ""), stream["end"] is not None

    async def find(self, owner: str, *, thread: str | None = None, ended_within: float = 0.0) -> list[About]:
        wanted = "owner = ? AND owner != '' AND thread = coalesce(?, thread) AND (ended IS NULL OR ended > ?)"
        values = [owner, thread, self.clock() - min(ended_within, self.retention)]
        with self.transaction() as db:
            found = db.execute(f"SELECT about FROM streams WHERE {wanted} ORDER BY id DESC", values)
            return [msgpack.decode(about, type=About) for (about,) in found]

    async def erase(self, key: str) -> None:
        with suppress(errors.StreamNotFound):
            await self._passing.erase(key)
            return
        with suppress(errors.StreamExpired), self.transaction() as db:
            stream = self._kept(db, key)
            if stream["end"] is not None:
                db.execute("DELETE FROM entries WHERE stream = ?", [stream["id"]])
                expired = self.clock() - self.retention
                db.execute("UPDATE streams SET about = NULL, ended = ? WHERE id = ?", [expired, stream["id"]])

    async def forget(self, owner: str) -> None:
        with self.transaction() as db:
            keys = [key for (key,) in db.execute("SELECT key FROM streams WHERE owner = ?", [owner]) if owner]
        try:
            await wait_for_ends(self, keys)
        finally:
            for key in keys:
                await self.erase(key)

    def on_lost(self, call: OnLost) -> None:
        self._on_lost = call

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The file: all that is done within the context is done at once, or nothing. Raises `LogUnavailable`."""
        if self._db is None:
            raise errors.LogUnavailable("The log is not open.")
        try:
            with self._db as db:
                db.execute("BEGIN EXCLUSIVE")
                yield db
        except sqlite3.Error as error:
            raise errors.LogUnavailable(f"{self.path}: {error}.") from error

    def _kept(self, db: sqlite3.Connection, key: str) -> sqlite3.Row:
        stream: sqlite3.Row | None = db.execute("SELECT * FROM streams WHERE key = ?", [key]).fetchone()
        if stream is None:
            raise errors.StreamNotFound("There is no such stream.")
        if stream["end"] is not None and stream["ended"] <= self.clock() - self.retention:
            raise errors.StreamExpired("This stream has ended and is no longer kept.")
        return stream

    def clean(self) -> None:
        """Says that this process is alive, ends the streams of dead processes, and removes what has expired."""
        now = self.clock()
        dead = "process NOT IN (SELECT id FROM processes)"
        with self.transaction() as db:
            db.execute("REPLACE INTO processes VALUES (?, ?)", [self.process, now])
            db.execute("DELETE FROM processes WHERE seen < ?", [now - self.lease])
            db.execute(f"DELETE FROM readers WHERE {dead}")
            lost = f"end IS NULL AND {dead}"
            if self._on_lost is None:
                db.execute(f"UPDATE streams SET {ENDED} WHERE {lost}", [msgpack.encode(LOST), now])
            claimed = db.execute(f"SELECT * FROM streams WHERE {lost}").fetchall()
            db.execute(f"UPDATE streams SET process = ?, attempt = attempt + 1 WHERE {lost}", [self.process])
            unread = "NOT IN (SELECT stream FROM readers)"
            db.execute(f"DELETE FROM streams WHERE ended < ? AND id {unread}", [now - self.retention - TOMBSTONE])
            kept = "SELECT id FROM streams WHERE end IS NULL OR ended > ?"
            db.execute(f"DELETE FROM entries WHERE stream NOT IN ({kept}) AND stream {unread}", [now - self.retention])

        for stream in claimed:
            self._ending.add(asyncio.create_task(self._hand_over(stream)))

    async def _hand_over(self, stream: sqlite3.Row) -> None:
        about = msgpack.decode(stream["about"], type=About)
        end = LOST if stream["decided"] is None else msgpack.decode(stream["decided"], type=End)
        batches, attempt = self._batches(stream), stream["attempt"] + 1
        with suppress(Exception):
            await self._on_lost(
                LostStream(about=about, request=stream["request"] or b"", end=end, attempt=attempt, batches=batches)
            )
        with self.transaction() as db:
            values = [msgpack.encode(LOST), self.clock(), stream["id"], self.process]
            db.execute(f"UPDATE streams SET {ENDED} WHERE {MINE}", values)

    async def _batches(self, stream: sqlite3.Row) -> AsyncIterator[Batch]:
        reader = SQLiteReader(self, stream, 0, at_end=False, heartbeat=0)
        async for batch in reader:
            if not batch.entries:
                break
            yield batch

    async def _look(self) -> None:
        cleaned = self.clock()
        while True:
            await asyncio.sleep(self.poll)
            with suppress(errors.LogUnavailable):  # the next look may succeed
                for writer in list(self.writers):
                    writer.look()
                if self.clock() - cleaned > self.lease / 4:
                    self.clean()
                    cleaned = self.clock()


class SQLiteWriter:
    """A `Writer` of a kept stream."""

    def __init__(self, log: SQLiteLog, id_: int | None) -> None:
        self._log, self._id = log, id_
        self._end: End | None = None
        self._read_at = time.monotonic()

    def append(self, entries: Sequence[Entry]) -> Flow:
        with self._log.transaction() as db:
            stream = db.execute(f"SELECT * FROM streams WHERE {MINE}", [self._id, self._log.process]).fetchone()
            if stream is None or self._end is not None:
                return Flow.ENOUGH
            size = stream["bytes"] + sum(len(entry.data) for entry in entries)
            if size > self._log.max_bytes:
                raise errors.StreamTooLong("The stream exceeded its limit of bytes.")
            rows = [(self._id, place, msgpack.encode(entry)) for place, entry in enumerate(entries, stream["last"] + 1)]
            db.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
            last = stream["last"] + len(entries)
            db.execute("UPDATE streams SET last = ?, bytes = ? WHERE id = ?", [last, size, self._id])
        return Flow.MORE

    async def room(self) -> None:
        """Returns at once: the file has room."""

    async def stored(self) -> None:
        """Returns at once: `create` has written to the file."""

    def keep(self, request: bytes) -> None:
        with suppress(errors.LogUnavailable), self._log.transaction() as db:
            db.execute(f"UPDATE streams SET request = ? WHERE {MINE}", [request, self._id, self._log.process])

    async def decide(self, end: End) -> bool:
        with suppress(errors.LogUnavailable), self._log.transaction() as db:
            values = [msgpack.encode(end), self._id, self._log.process]
            return db.execute(f"UPDATE streams SET decided = ? WHERE {MINE}", values).rowcount == 1
        return True

    async def close(self, end: End) -> None:
        self._end = self._end or end
        self._log.writers.add(self)  # until the end is in the file
        self.look()

    def watch(self, *, stopped: Callable[[str], object], left: Any, lost: Any, linger: float) -> None:
        self._stopped, self._left, self._lost, self._linger = stopped, left, lost, linger
        self._log.writers.add(self)

    def look(self) -> None:
        """Saves the end if there is one. Otherwise tells the producer what has happened in other processes."""
        with self._log.transaction() as db:
            stream = db.execute(f"SELECT * FROM streams WHERE {MINE}", [self._id, self._log.process]).fetchone()
            readers = db.execute("SELECT count(*) FROM readers WHERE stream = ?", [self._id]).fetchone()[0]
            if stream is not None and self._end is not None:
                values = [msgpack.encode(self._end), self._log.clock(), self._id]
                db.execute("UPDATE streams SET end = ?, ended = ?, request = NULL WHERE id = ?", values)
        if stream is None or self._end is not None:
            self._log.writers.discard(self)
        if self._end is not None:
            return
        if stream is None:
            self._lost()
        elif stream["stop"] is not None:
            self._stopped(stream["stop"])
            self._stopped = lambda reason: None
        elif readers:
            self._read_at = time.monotonic()
        elif time.monotonic() - self._read_at >= self._linger:
            self._read_at = math.inf
            self._left()


class SQLiteReader:
    """A `Reader` of a kept stream."""

    def __init__(self, log: SQLiteLog, row: sqlite3.Row, place: int, *, at_end: bool, heartbeat: float | None) -> None:
        self.id = secrets.token_hex(8)
        self.about = msgpack.decode(row["about"], type=About)
        self.at_end = at_end
        self._log, self._stream, self._place = log, row["id"], place
        self._heartbeat = math.inf if heartbeat is None else heartbeat
        self._closed = False

    async def opened(self, timeout: float) -> None:
        timeout_at = time.monotonic() + timeout
        while not self._closed:
            last, end, _ = self._load(0)
            if last == 0 and end is not None and (error := end.exception()) is not None:
                raise error
            if last or end is not None or time.monotonic() >= timeout_at:
                return
            await asyncio.sleep(self._log.poll)

    def __aiter__(self) -> SQLiteReader:
        return self

    async def __anext__(self) -> Batch:
        heartbeat_at = time.monotonic() + self._heartbeat
        while not self._closed and not self.at_end:
            with suppress(errors.LogUnavailable):  # the next look may succeed
                first = self._place + 1
                last, end, entries = self._load(BATCH)
                self._place += len(entries)
                self.at_end = end is not None and self._place == last
                if entries or self.at_end:
                    return Batch(first, entries, end if self.at_end else None)
            if time.monotonic() >= heartbeat_at:
                return Batch(self._place + 1, ())
            await asyncio.sleep(self._log.poll)
        raise StopAsyncIteration

    def _load(self, size: int) -> tuple[int, End | None, list[Entry]]:
        """The number of the stream's entries, its end, and the next entries, until they have *size* bytes."""
        entries: list[Entry] = []
        with self._log.transaction() as db:
            stream = db.execute("SELECT * FROM streams WHERE id = ?", [self._stream]).fetchone()
            if stream is None:  # it had failed without an entry, and its key was used again
                return self._place, LOST, []
            if stream["about"] is None:
                raise errors.StreamExpired("This stream was erased.")
            behind = "SELECT entry FROM entries WHERE stream = ? AND place > ? ORDER BY place"
            for (entry,) in db.execute(behind, [self._stream, self._place]):
                if size <= 0:
                    break
                entries.append(msgpack.decode(entry, type=Entry))
                size -= len(entry)
            return stream["last"], decode_end(stream), entries

    async def aclose(self) -> None:
        self._closed = True
        with suppress(errors.LogUnavailable), self._log.transaction() as db:
            db.execute("DELETE FROM readers WHERE id = ?", [self.id])


def decode_end(stream: sqlite3.Row) -> End | None:
    """The end in a row of `streams`."""
    return None if stream["end"] is None else msgpack.decode(stream["end"], type=End)
