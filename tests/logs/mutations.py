"""Mutations of the SQLite log, and the tests of the contract that find them."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from types import ModuleType

from msgspec import structs

from quart_openai_sse.logs import LostStream
from tests.logs import sqlite_log

SOURCE = Path(sqlite_log.__file__).read_text("utf-8")


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A change of the log's source, and the tests of the contract that fail with it."""

    name: str
    before: str
    after: str
    caught_by: tuple[str, ...]
    only_in_two: bool = False
    """Whether no test fails as long as there is one process."""

    def __str__(self) -> str:
        return self.name

    def log_class(self) -> type[sqlite_log.SQLiteLog]:
        """The log with the mutation."""
        assert SOURCE.count(self.before) == 1, f"{self.before!r} is in the source {SOURCE.count(self.before)} times"
        module = ModuleType("mutated_log")
        vars(module).update(dataclasses=dataclasses, structs=structs, _run_meanwhile=run_meanwhile)
        exec(compile(SOURCE.replace(self.before, self.after), self.name, "exec"), vars(module))
        log_class: type[sqlite_log.SQLiteLog] = module.SQLiteLog
        return log_class


async def _call(log: sqlite_log.SQLiteLog, lost: LostStream) -> None:
    await log._on_lost(lost)


def run_meanwhile(log: sqlite_log.SQLiteLog, lost: LostStream) -> None:
    """Has a log's `on_lost` called without waiting for it."""
    log._ending.add(asyncio.ensure_future(_call(log, lost)))


def changed_entry(name: str, change: str, *caught_by: str) -> Mutation:
    """A log that writes its entries with a *change*."""
    after = f"msgpack.encode(structs.replace(entry, {change}))) for place"
    return Mutation(name, "msgpack.encode(entry)) for place", after, caught_by or (ENTRIES,))


def changed_end(name: str, change: str, *caught_by: str) -> Mutation:
    """A log that writes the ends with a *change*; *error* is the end's error, if there is one."""
    after = f"[msgpack.encode(dataclasses.replace(self._end, {change})), self._log"
    return Mutation(name, "[msgpack.encode(self._end), self._log", after, caught_by or (END,))


def changed_error(name: str, change: str) -> Mutation:
    """A log that writes the errors of ends with a *change*."""
    return changed_end(name, f"error=self._end.error and dataclasses.replace(self._end.error, {change})")


ENTRIES = "entries_are_read_as_they_were_written"
END = "the_end_is_read_as_it_was_written"
PLACES = "every_resume_point_gives_exactly_the_rest"
ATTACHED = "a_key_that_exists_is_attached_to"
FOUND = "a_stream_is_found_with_everything_that_is_known_of_it"
OWNERS = "an_owner_finds_its_own_running_streams_newest_first"
THREADS = "the_streams_of_one_thread_are_found"
ENDED = "streams_that_ended_a_moment_ago_are_found_if_asked_for"
INVALID = "an_invalid_last_event_id_is_refused"
TAIL = "tail_names_the_last_entry_and_says_whether_the_stream_has_ended"
EXPIRED = "an_expired_stream_cannot_be_read_and_holds_its_key"
TOO_LONG = "an_append_that_is_too_long_adds_nothing"
OPENED = "opened_raises_the_failure_of_a_stream_without_output"
LEFT = "the_producer_is_told_when_the_last_reader_has_closed"
LINGER = "a_stream_without_readers_goes_on_for_its_linger"
STOPPED = "a_stop_reaches_the_producer"
LOST = "the_streams_of_a_process_that_is_taken_for_dead_fail"
STORED = "a_stream_that_is_stored_is_found_in_every_process"
UNDECIDED = "a_process_that_was_taken_for_dead_decides_nothing"
DECIDED = "a_decided_end_is_the_end_of_a_lost_stream"
HANDED = "a_lost_stream_is_handed_to_one_living_process"
HANDED_END = "a_lost_stream_is_handed_over_with_the_end_that_was_decided"
EVERY = "every_running_stream_of_a_lost_process_is_handed_over"
ERASED = "an_erased_stream_has_expired_in_every_process"
ONLY_ENDED = "only_a_stream_that_has_ended_is_erased"
READERS_END = "the_readers_of_a_stream_that_is_erased_end"
FORGOTTEN = "all_streams_of_an_owner_are_forgotten"
FENCED = "a_producer_that_was_taken_for_dead_is_told_and_fenced"
REACHED = "a_place_that_a_reader_has_reached_is_valid_in_every_process"
CAUGHT_UP = "a_reader_far_behind_catches_up_with_a_running_stream"
UNREACHABLE = "an_unreachable_store_is_no_missing_stream"

FETCH = 'stream = db.execute("SELECT * FROM streams WHERE key = ?", [key]).fetchone()\n            end'
IS_OPEN = 'WHERE {MINE}", [self._id, self._log.process]).fetchone()\n            '
ANY = 'WHERE id = ? AND ? IS NOT NULL", [self._id, self._log.process]).fetchone()\n            '

FORGET_END = """self._end = end
        with self._log.transaction() as db:
            db.execute("UPDATE streams SET end = NULL WHERE id = ?", [self._id])"""

ADD_FIRST = """if size > self._log.max_bytes:
                row = (self._id, stream["last"] + 1, msgpack.encode(entries[0]))
                db.execute("INSERT INTO entries VALUES (?, ?, ?)", row)
                db.execute("UPDATE streams SET last = last + 1")
                db.execute("COMMIT")"""

MUTATIONS = [
    # Nothing leaves the process
    Mutation(
        "append writes nothing for other processes",
        "            for (entry,) in db.execute(behind",
        '            if stream["process"] != self._log.process:\n'
        "                return 0, decode_end(stream), []\n"
        "            for (entry,) in db.execute(behind",
        (ENTRIES, PLACES, "a_reader_waits_for_entries_and_for_the_end"),
        only_in_two=True,
    ),
    Mutation(
        "create asks no other process",
        FETCH,
        'stream = db.execute("SELECT * FROM streams WHERE key = ? AND process = ?",'
        " [key, self.process]).fetchone()\n            end",
        (ATTACHED, "of_two_creates_at_once_one_gets_the_stream"),
        only_in_two=True,
    ),
    Mutation(
        "find knows only the process's own streams",
        "ORDER BY id DESC",
        "AND process = '{self.process}' ORDER BY id DESC",
        (FOUND, OWNERS, THREADS, ENDED),
        only_in_two=True,
    ),
    Mutation(
        "stop reaches only the process's own producers",
        'self._kept(db, key)\n            db.execute("UPDATE',
        'self._kept(db, key)\n            if stream["process"] == self.process: db.execute("UPDATE',
        (STOPPED,),
        only_in_two=True,
    ),
    Mutation(
        "readers elsewhere are not counted",
        'readers WHERE stream = ?", [self._id]',
        'readers WHERE stream = ? AND process = ?", [self._id, self._log.process]',
        (LEFT,),
        only_in_two=True,
    ),
    Mutation(
        "the readers of a dead process are counted",
        'db.execute(f"DELETE FROM readers WHERE {dead}")',
        "pass",
        ("the_readers_of_a_dead_process_do_not_keep_a_stream",),
        only_in_two=True,
    ),
    # Entries and ends are changed
    changed_entry("entries lose their times", "t=0.0"),
    changed_entry("entries lose the mark of usage", "usage=False"),
    changed_entry("entries lose their kinds", "kind=type(entry.kind).CHUNK"),
    changed_entry("events lose their names", "name=''"),
    changed_entry("data is taken for UTF-8", "data=entry.data.decode(errors='replace').encode()"),
    changed_entry("an entry has 64 KiB at most", "data=entry.data[:65536]"),
    Mutation(
        "empty entries are left out",
        'enumerate(entries, stream["last"] + 1)]',
        'enumerate(entries, stream["last"] + 1) if entry.data]',
        (ENTRIES,),
    ),
    changed_error("errors lose their class", "name='unknown'"),
    changed_error("errors lose their messages", "message='The stream failed.'"),
    changed_error("errors lose their statuses", "status=500"),
    changed_error("errors lose their codes", "code=None"),
    changed_error("errors lose their params", "param=None"),
    changed_error("errors lose retry_after", "retry_after=None"),
    changed_end("ends lose their errors", "error=None", END, OPENED),
    changed_end("ends lose their reasons", "reason=''"),
    changed_end("ends lose their usage", "usage=None", END, ENTRIES),
    changed_end("ends lose their finish reasons", "finish_reasons={}", END, ENTRIES),
    changed_end(
        "finish reasons are by text", "finish_reasons={str(k): v for k, v in self._end.finish_reasons.items()}"
    ),
    # Places
    Mutation(
        "a reader gets an entry again", "[self._stream, self._place]", "[self._stream, self._place - 1]", (PLACES,)
    ),
    Mutation(
        "a reader misses an entry", "place > ? ORDER", "place > ? + (? > 0) ORDER".replace("(? > 0)", "1"), (PLACES,)
    ),
    Mutation("entries have no order", "ORDER BY place", "ORDER BY place DESC", (ENTRIES, PLACES)),
    Mutation(
        "a place ahead is waited for",
        'parse_place(after, last=stream["last"])',
        "parse_place(after, last=10**9)",
        (INVALID,),
    ),
    Mutation(
        "other processes know a place a moment later",
        'parse_place(after, last=stream["last"])',
        'parse_place(after, last=stream["last"] - (stream["process"] != self.process))',
        (REACHED, PLACES),
        only_in_two=True,
    ),
    Mutation(
        "a reader far behind skips what it does not get at once",
        "self._place += len(entries)",
        "self._place = last",
        (CAUGHT_UP, "a_reader_far_behind_gets_bounded_batches"),
    ),
    Mutation(
        "an invalid id begins anew",
        'parse_place(after, last=stream["last"])',
        'int(after) if after.isdigit() and int(after) <= stream["last"] else 0',
        (INVALID,),
    ),
    Mutation(
        "the end's id is valid while the stream runs",
        'after == END_ID and stream["end"] is not None',
        "after == END_ID",
        (INVALID,),
    ),
    Mutation(
        "the end's id is invalid",
        'after == END_ID and stream["end"] is not None',
        "False",
        ("a_reader_that_has_the_end_gets_nothing",),
    ),
    Mutation("tail is the number of the first entry", 'str(stream["last"] or "")', '"1"', (TAIL,)),
    Mutation("tail is 0 before the first entry", 'str(stream["last"] or "")', 'str(stream["last"])', (TAIL,)),
    Mutation("tail never says that the stream has ended", ', stream["end"] is not None\n', ", False\n", (TAIL,)),
    # Keys and the index
    Mutation("digests are not compared", 'if stream["digest"] != digest:', "if False:", (ATTACHED, EXPIRED)),
    Mutation(
        "a key is held by a start that failed",
        'or end.outcome != "failed"',
        "or True",
        ("a_stream_that_failed_without_an_entry_does_not_hold_its_key",),
    ),
    Mutation(
        "an unknown stream is an empty one",
        "        if stream is None:\n            raise errors.StreamNotFound",
        "        if stream is None:\n            raise errors.StreamExpired",
        ("an_unknown_stream_is_not_found",),
    ),
    Mutation("find ignores the owner", '"owner = ? AND owner', '"owner != coalesce(?, 0) || 1 AND owner', (OWNERS,)),
    Mutation("streams of anonymous callers are found", " AND owner != ''", "", (OWNERS,)),
    Mutation("find returns the oldest first", "ORDER BY id DESC", "ORDER BY id", (OWNERS, ENDED)),
    Mutation("find ignores the thread", "thread = coalesce(?, thread)", "coalesce(?, 1) IS NOT NULL", (THREADS,)),
    Mutation("no thread is any thread", "[owner, thread, self.clock", "[owner, thread or None, self.clock", (THREADS,)),
    Mutation(
        "find returns running streams only", "(ended IS NULL OR ended > ?)", "(ended IS NULL OR ? IS NULL)", (ENDED,)
    ),
    Mutation("find returns all that ended", "min(ended_within, self.retention)", "self.retention", (ENDED,)),
    Mutation(
        "find loses the echo",
        "msgpack.encode(about), self.process",
        "msgpack.encode(structs.replace(about, echo=b'')), self.process",
        (FOUND,),
    ),
    Mutation(
        "find rounds the time of the start",
        "msgpack.encode(about), self.process",
        "msgpack.encode(structs.replace(about, created=int(about.created))), self.process",
        (FOUND,),
    ),
    Mutation(
        "passing streams are kept and found",
        "if not retain:",
        "if False:",
        (OWNERS, "a_passing_stream_drops_the_entries_that_were_read"),
    ),
    Mutation(
        "an expired stream is unknown",
        'raise errors.StreamExpired("This stream has',
        'raise errors.StreamNotFound("This stream has',
        (EXPIRED,),
    ),
    Mutation("a stream never expires", "<= self.clock() - self.retention", "<= 0", (EXPIRED,)),
    Mutation(
        "an expired stream does not hold its key",
        FETCH,
        FETCH.replace(
            "\n",
            '\n            stream = stream if stream and not (stream["ended"] or 1e9) < self.clock() - 300 else None\n',
            1,
        ),
        (EXPIRED,),
    ),
    # Ends
    Mutation(
        "the second end wins",
        "self._end = self._end or end",
        FORGET_END,
        ("nothing_comes_after_the_first_end",),
    ),
    Mutation(
        "append adds to a stream that has ended",
        IS_OPEN + "if stream is None or self._end is not None:",
        ANY + "if stream is None:",
        ("nothing_comes_after_the_first_end", FENCED),
    ),
    Mutation(
        "too long an append adds a part",
        "if size > self._log.max_bytes:",
        ADD_FIRST,
        (TOO_LONG,),
    ),
    Mutation("a stream has no limit", "if size > self._log.max_bytes:", "if False:", (TOO_LONG,)),
    Mutation(
        "a batch has no limit",
        "BATCH, TOMBSTONE = 256 << 10",
        "BATCH, TOMBSTONE = 1 << 30",
        ("a_reader_far_behind_gets_bounded_batches",),
    ),
    # Waiting
    Mutation(
        "there is no heartbeat", "if time.monotonic() >= heartbeat_at:", "if False:", ("silence_gives_an_empty_batch",)
    ),
    Mutation(
        "opened returns at once",
        "        while not self._closed:\n            last",
        "        while False:\n            last",
        (OPENED,),
    ),
    Mutation(
        "opened raises nothing",
        "            if last == 0 and end is not None and (error",
        "            if False and (error",
        (OPENED,),
    ),
    Mutation(
        "opened raises also after output",
        "if last == 0 and end is not None and (error",
        "if end is not None and (error",
        ("opened_waits_for_output",),
    ),
    Mutation(
        "closing a reader does not end its waiting",
        "        self._closed = True\n",
        "        pass\n",
        ("closing_a_reader_ends_its_waiting",),
    ),
    # What the producer is told
    Mutation(
        "the producer is not told of a stop",
        '            self._stopped(stream["stop"])',
        "            pass",
        (STOPPED,),
    ),
    Mutation("the last stop wins", "coalesce(stop, ?)", "?", (STOPPED,)),
    Mutation(
        "the producer is not told that no reader is left",
        "            self._left()",
        "            pass",
        (LEFT, "the_producer_is_told_when_the_stream_never_had_a_reader"),
    ),
    Mutation(
        "the producer is told although there are readers", "        elif readers:", "        elif False:", (LEFT,)
    ),
    Mutation(
        "the linger is not waited for",
        ">= self._linger",
        ">= 0",
        (LINGER,),
    ),
    Mutation("the producer is not told that it is lost", "            self._lost()", "            pass", (FENCED,)),
    Mutation(
        "the producer is told that it is lost when it has ended",
        "        if self._end is not None:\n            return\n",
        "        if self._end is not None:\n            return self._lost()\n",
        ("a_stop_after_the_end_does_nothing",),
    ),
    Mutation(
        "a dead process's streams run for ever",
        'lost = f"end IS NULL AND {dead}"',
        'lost = "0"',
        (LOST, FENCED),
    ),
    Mutation(
        "streams that have ended are lost",
        'lost = f"end IS NULL AND {dead}"',
        "lost = dead",
        ("a_stream_that_has_ended_is_not_lost",),
    ),
    Mutation(
        "a lost producer's end overwrites the loss",
        IS_OPEN + "readers",
        ANY + "readers",
        (FENCED,),
    ),
    # Ends that are decided, streams that are handed over
    Mutation(
        "a stream is found from its first entry on",
        "if stream is None:\n            raise errors.StreamNotFound",
        'if stream is None or not stream["last"]:\n            raise errors.StreamNotFound',
        (STORED, TAIL),
    ),
    Mutation("a process that is lost may decide", ".rowcount == 1", ".rowcount >= 0", (UNDECIDED,)),
    Mutation(
        "a decided end is the end", "SET decided = ? WHERE", "SET end = ? WHERE", ("a_decided_end_is_not_the_end_yet",)
    ),
    Mutation("a decided end is forgotten", "coalesce(decided, ?)", "coalesce(NULL, ?)", (DECIDED, HANDED_END)[:1]),
    Mutation(
        "lost streams are handed to nobody",
        "if self._on_lost is None:",
        "if True:",
        (HANDED, HANDED_END, EVERY),
        only_in_two=True,
    ),
    Mutation(
        "a decided end is not handed over",
        'LOST if stream["decided"] is None else',
        "LOST if True else",
        (HANDED_END,),
        only_in_two=True,
    ),
    Mutation(
        "the request is not handed over",
        'request=stream["request"] or b""',
        'request=b""',
        (HANDED, HANDED_END, EVERY),
        only_in_two=True,
    ),
    Mutation(
        "what is handed over is no new attempt",
        'attempt = self._batches(stream), stream["attempt"] + 1',
        'attempt = self._batches(stream), stream["attempt"]',
        (HANDED,),
        only_in_two=True,
    ),
    Mutation(
        "a stream is handed over without its entries",
        "            if not batch.entries:",
        "            if True:",
        (HANDED,),
        only_in_two=True,
    ),
    Mutation(
        "a stream that is handed over ends at once",
        "            await self._on_lost(",
        "            _run_meanwhile(self, ",
        (HANDED,),
        only_in_two=True,
    ),
    Mutation(
        "a hook that fails leaves the stream without its end",
        "with suppress(Exception):",
        "with suppress(ZeroDivisionError):",
        (EVERY,),
        only_in_two=True,
    ),
    Mutation(
        "streams that have ended are handed over",
        'lost = f"end IS NULL AND {dead}"',
        "lost = dead",
        (EVERY,),
        only_in_two=True,
    ),
    # What is erased
    Mutation(
        "erase does nothing",
        'if stream["end"] is not None:\n                db.execute("DELETE',
        'if False:\n                db.execute("DELETE',
        (ERASED, READERS_END, FORGOTTEN),
    ),
    Mutation(
        "an erased stream is unknown",
        '"UPDATE streams SET about = NULL, ended = ? WHERE id = ?"',
        '"DELETE FROM streams WHERE ? > 0 AND id = ?"',
        (ERASED, FORGOTTEN),
    ),
    Mutation(
        "erased entries can be read", "expired = self.clock() - self.retention", "expired = self.clock()", (ERASED,)
    ),
    Mutation(
        "running streams are erased",
        'if stream["end"] is not None:\n                db.execute("DELETE',
        'if True:\n                db.execute("DELETE',
        (ONLY_ENDED,),
    ),
    Mutation("the readers of an erased stream wait", 'if stream["about"] is None:', "if False:", (READERS_END,)),
    Mutation(
        "forget erases nothing", "                await self.erase(key)\n", "                pass\n", (FORGOTTEN,)
    ),
    Mutation(
        "forget erases the streams of all owners",
        'FROM streams WHERE owner = ?", [owner]) if owner]',
        "FROM streams WHERE ? != ''\", [owner]) if owner]",
        (FORGOTTEN,),
    ),
    Mutation("forget stops no stream", "await wait_for_ends(self, keys)", "pass", (FORGOTTEN,)),
    # The store, open and close
    Mutation(
        "an unreachable store is a missing stream",
        'raise errors.LogUnavailable(f"{self.path}: {error}.") from error\n\n    def _kept',
        "raise errors.StreamNotFound from error\n\n    def _kept",
        (UNREACHABLE,),
    ),
    Mutation(
        "an error of the store is the library's",
        "except sqlite3.Error as error:\n            raise",
        "except ZeroDivisionError as error:\n            raise",
        (UNREACHABLE, "an_end_that_cannot_be_stored_at_once_is_stored_later"),
    ),
    Mutation(
        "the log is always ready",
        "            return True\n        return False",
        "            return True\n        return True",
        (UNREACHABLE,),
    ),
    Mutation(
        "an end that could not be stored is forgotten",
        "                    writer.look()",
        "                    writer._end or writer.look()",
        ("an_end_that_cannot_be_stored_at_once_is_stored_later",),
    ),
    Mutation(
        "open fails for good",
        "            self._db.close()\n            self._db = None\n            raise",
        "            self._db.close()\n            raise",
        ("a_log_that_could_not_be_opened_can_be_opened_later",),
    ),
    Mutation(
        "aclose may be called once",
        "        if self._db is not None:\n            self._looking",
        "        if True:\n            self._looking",
        ("open_and_aclose_may_be_called_again",),
    ),
    Mutation(
        "aclose is for good",
        "            self._db.close()\n            self._db = None\n        await",
        "            self._db.close()\n        await",
        ("open_and_aclose_may_be_called_again",),
    ),
    Mutation(
        "aclose ends the streams of all processes",
        '"DELETE FROM processes WHERE id = ?", [self.process]',
        '"UPDATE streams SET end = ? WHERE end IS NULL", [msgpack.encode(LOST)]',
        ("closing_a_log_ends_no_stream_of_another_process",),
        only_in_two=True,
    ),
]
