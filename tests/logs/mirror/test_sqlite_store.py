"""The store in an SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from quart_openai_sse.errors import ConfigurationError, LogUnavailable
from quart_openai_sse.logs.mirror import State, sqlite_cleaning, sqlite_news
from quart_openai_sse.logs.mirror.sqlite import SQLiteStore
from tests.conftest import Clock
from tests.logs.mirror.store_contract import StoreContract
from tests.logs.mirror.store_contract_base import ANN, BOB, Process, batch, end, stream, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "instance/streams.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def create_process(path: Path, clock: Clock) -> AsyncIterator[Callable[[str], Any]]:
    """Opens the store as a process sees it."""
    opened = []

    async def create_process(name: str) -> Process:
        process = Process(SQLiteStore(path, clock=clock, steady=clock), name)
        opened.append(process.store)
        await process.open()
        return process

    yield create_process
    for store in opened:
        await store.aclose()


class TestSQLiteStore(StoreContract):
    test_a_store_that_was_emptied_lets_its_writers_begin_again = None  # a file is removed, see below, but not emptied

    @pytest.fixture
    def store(self, path: Path, clock: Clock) -> SQLiteStore:
        self._stores = [SQLiteStore(path, clock=clock, steady=clock)]
        return self._stores[0]

    def other(self, store: Any) -> SQLiteStore:
        clock = store._streams.clock
        self._stores.append(SQLiteStore(store._path, clock=clock, steady=clock))
        return self._stores[-1]

    async def pass_time(self, store: Any, seconds: float) -> None:
        for each in self._stores:  # each process sees what the others have done until now
            await each.follow("nothing")
        store._streams.clock.now += seconds

    @asynccontextmanager
    async def unreachable(self, store: Any) -> AsyncIterator[None]:
        with moved(store._path):
            yield

    async def cut(self, store: Any) -> None:
        with moved(store._path):
            while await store.ready():
                pass


class moved:  # noqa: N801
    """A context in which something else is in the place of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._away = path.with_suffix(".away")

    def __enter__(self) -> None:
        self._path.rename(self._away)
        self._path.mkdir()

    def __exit__(self, *exception: object) -> None:
        self._path.rmdir()
        self._away.rename(self._path)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `sqlite_process`, and waits for its line."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path, what: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.logs.mirror.sqlite_process", str(path), what]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


Create = Callable[[str], Any]


async def state(process: Process, key: str = "k") -> State | None:
    (found,) = await process.store.states([key])
    return found


# Opening --------------------------------------------------------------------------------------------------------------


async def test_only_its_user_can_read_the_file_and_its_folder_is_made(path: Path, create_process: Create) -> None:
    process = await create_process(ANN)
    await process.store.create("k", stream())
    found = {each.name: oct(each.stat().st_mode & 0o777) for each in path.parent.iterdir()}
    assert found == dict.fromkeys(["streams.db", "streams.db-shm", "streams.db-wal"], "0o600")


def foreign(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: path.write_text("Dear diary, " * 100), "is not an SQLite database"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: foreign(path, "CREATE TABLE notes (note)"), "is the SQLite database of another program"),
        (lambda path: foreign(path, "PRAGMA application_id = 7"), "is the SQLite database of another program"),
    ],
    ids=["text", "folder", "tables", "application"],
)
async def test_what_is_no_file_of_ours_is_refused_and_left_as_it_is(
    tmp_path: Path, prepare: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "streams.db"
    prepare(path)
    before = path.read_bytes() if path.is_file() else b""
    store = SQLiteStore(path)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=words):
            await store.open(ANN, lambda key, message: None, lambda: None)
    await store.aclose()
    assert not path.is_file() or path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["streams.db"]


async def test_a_file_of_another_version_is_refused_and_one_with_more_tables_is_not(
    path: Path, create_process: Create
) -> None:
    await (await create_process(ANN)).store.aclose()
    foreign(path, "CREATE TABLE added (since INTEGER)")
    foreign(path, "ALTER TABLE streams ADD COLUMN added INTEGER NOT NULL DEFAULT 0")
    process = await create_process(ANN)
    await process.store.create("k", stream())
    assert (await process.store.write([write(0, 1)]))[0].result == "done"
    await process.store.aclose()
    foreign(path, "PRAGMA user_version = 2")
    with pytest.raises(ConfigurationError, match=r"another way \(2 instead of 1\)"):
        await create_process(ANN)


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be created: File exists"):
        await SQLiteStore(tmp_path / "file/streams.db").open(ANN, lambda key, message: None, lambda: None)


async def test_workers_that_start_at_once_share_a_new_file(create_process: Create) -> None:
    processes = await asyncio.gather(*(create_process(f"{number:016x}") for number in range(6)))
    await asyncio.gather(*(process.store.renew(60) for process in processes))
    assert len((await processes[0].store.renew(60)).alive) == 6


# Failures -------------------------------------------------------------------------------------------------------------


async def test_while_another_program_has_locked_the_file_it_can_be_read(path: Path, create_process: Create) -> None:
    process = await create_process(ANN)
    await process.store.create("k", stream())
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        assert await state(process) is not None
        with pytest.raises(LogUnavailable, match=r"^streams\.db is locked by another process"):
            await process.store.write([write(0, 1)])
        db.execute("ROLLBACK")
    assert (await process.store.write([write(0, 1)]))[0].result == "done"
    assert process.again == 0


async def test_a_full_disk_loses_nothing_that_was_written(create_process: Create) -> None:
    process = await create_process(ANN)
    await process.store.create("k", stream())
    await process.store.create("l", stream(f"{ANN}.2"))
    pages = await process.store._do(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    await process.store._do(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 5}"))
    large = write(0, 1, "l", f"{ANN}.2", batch=batch(1, bytes(100_000)))
    with pytest.raises(LogUnavailable, match="the disk is full"):
        await process.store.write([write(0, 1), large])
    assert [found and found.count for found in await process.store.states(["k", "l"])] == [0, 0]
    await process.store._do(lambda db: db.execute("PRAGMA max_page_count = 1000000"))
    assert [each.result for each in await process.store.write([write(0, 1), large])] == ["done", "done"]


@pytest.mark.parametrize("what", ["file", "all"])
async def test_a_file_that_was_removed_is_made_again_by_all(path: Path, create_process: Create, what: str) -> None:
    ann, bob = await create_process(ANN), await create_process(BOB)
    await ann.store.create("k", stream())
    await ann.store.renew(60)
    for each in path.parent.iterdir() if what == "all" else [path]:
        each.unlink()
    for process in (ann, bob):
        with pytest.raises(LogUnavailable, match=r"^streams\.db was removed or replaced"):
            await process.store.states(["k"])
    for process in (ann, bob):
        await process.until(lambda process=process: process.again)
    assert await state(bob) is None
    assert not (await ann.store.renew(60)).known
    assert await ann.store.create("k", stream()) is None
    await bob.store.follow("k")
    await ann.store.write([write(0, 1)])
    await bob.hears(("k", batch(1, b"1,")))


async def test_a_damaged_file_is_unavailable_in_words(path: Path, create_process: Create) -> None:
    process = await create_process(ANN)
    good = path.with_suffix(".good")
    await process.store.aclose()
    path.rename(good)
    await process.open()
    path.unlink()
    path.write_text("Dear diary, " * 1000)
    with pytest.raises(LogUnavailable, match="was removed"):
        await process.store.states([])
    path.unlink()
    good.rename(path)
    await process.until(lambda: process.again)
    assert await process.store.ready()


async def test_a_loop_that_is_closed_ends_the_thread(path: Path) -> None:
    def run() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(SQLiteStore(path).open(ANN, lambda key, message: None, lambda: None))
        loop.close()

    await asyncio.to_thread(run)
    for thread in threading.enumerate():
        if thread.name.startswith("SQLite"):
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()


async def test_what_fails_in_the_middle_is_undone(create_process: Create) -> None:
    process = await create_process(ANN)
    await process.store.create("k", stream())
    with pytest.raises(UnicodeEncodeError):
        await process.store.write([write(0, 1), write(0, 1, "\ud800")])
    assert (await process.store.write([write(0, 2)]))[0].result == "done"


async def test_a_stream_that_is_replaced_leaves_nothing(path: Path, create_process: Create) -> None:
    process = await create_process(ANN)
    await process.store.create("k", stream())
    await process.store.write([write(0, 1), write(1, 1, end=end(), holds_key=False)])
    assert rows(path) == {"streams": 1, "bodies": 1, "log": 2}
    assert await process.store.create("k", stream(f"{ANN}.2")) is None
    assert rows(path) == {"streams": 1, "bodies": 1, "log": 0}


async def test_the_end_that_was_decided_first_stays(create_process: Create) -> None:
    process = await create_process(ANN)
    await process.store.create("k", stream())
    for decided in (b"first", b"second"):
        await process.store.write([write(0, 0, decided=end(decided))])
    found = await state(process)
    assert found is not None
    assert found.decided == end(b"first")


async def test_nothing_is_heard_after_unfollow_although_it_was_read_before(create_process: Create) -> None:
    ann, bob = await create_process(ANN), await create_process(BOB)
    await ann.store.create("k", stream())
    await bob.store.follow("k")
    await ann.store.write([write(0, 1)])
    await bob.store.follow("l")  # reads what was written; it is delivered with the next turn of the loop
    bob.heard.clear()
    bob.store._news._tell([("k", b"late"), ("", b"message")], False)
    await bob.store.unfollow(["k"])
    bob.store._news._tell([("k", b"later")], False)
    assert bob.heard == [("k", b"late"), ("", b"message")]


async def test_a_process_that_was_frozen_is_told_to_read_again(create_process: Create, clock: Clock) -> None:
    ann = await create_process(ANN)
    clock.now += sqlite_news.KEPT
    await ann.until(lambda: ann.again)


async def test_a_process_that_is_far_behind_is_told_to_read_again(
    create_process: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob = await create_process(ANN), await create_process(BOB)
    await ann.store.create("k", stream())
    await bob.store.follow("k")
    monkeypatch.setattr(sqlite_news, "_MOST", 3)
    await ann.store.write([write(number, number + 1) for number in range(3)])
    await bob.until(lambda: bob.again)
    await ann.store.write([write(3, 4)])
    await bob.until(lambda: bob.heard[-1] == ("k", batch(4, b"4,")))
    assert bob.again == 1


# Time -----------------------------------------------------------------------------------------------------------------


async def test_a_jump_of_the_clock_ends_nothing_that_runs(path: Path, clock: Clock) -> None:
    wall = Clock()
    ann = Process(SQLiteStore(path, clock=wall, steady=clock), ANN)
    bob = Process(SQLiteStore(path, clock=wall, steady=clock), BOB)
    for process in (ann, bob):
        await process.open()
        await process.store.renew(15)
    await ann.store.create("k", stream(life=20.0))
    for jump in (60, -120):
        wall.now += jump
        assert not (await bob.store.renew(15)).overdue
        found = await state(bob)
        assert found is not None
        assert (found.kept, found.left_ago) == (True, 0)
        assert (await ann.store.write([write(0, 1)]))[0].result == "done"
    assert ann.again == bob.again == 0
    for process in (ann, bob):
        await process.store.aclose()


async def test_streams_outlive_a_restart_and_those_of_a_dead_process_can_be_claimed(
    create_process: Create, clock: Clock
) -> None:
    ann = await create_process(ANN)
    await ann.store.renew(15)
    await ann.store.create("k", stream())
    await ann.store.write([write(0, 2)])
    await ann.store._close()  # as a killed process does: it is still registered
    bob = await create_process(BOB)
    assert (await bob.store.renew(15)).alive == {ANN, BOB}
    clock.now += 16
    assert (await bob.store.renew(15)).overdue == {ANN}
    assert await bob.store.streams_of(ANN) == ["k"]
    claimed = await bob.store.claim("k", ANN, f"{BOB}.1")
    assert (claimed.count, claimed.attempt) == (2, 2)


def rows(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(path)) as db:
        names = ("streams", "bodies", "log")
        return {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}


async def cleaned(path: Path, expected: dict[str, int]) -> None:
    async with asyncio.timeout(10):
        while rows(path) != expected:
            await asyncio.sleep(0.02)


async def test_what_has_expired_is_removed_step_by_step(
    path: Path, create_process: Create, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_cleaning, "_ROWS", 3)
    ann = await create_process(ANN)
    await ann.store.renew(60)
    for number in range(4):
        key, writer = f"k{number}", f"{ANN}.{number}"
        await ann.store.create(key, stream(writer))
        await ann.store.write([write(0, 1, key, writer), write(1, 2, key, writer, end=end())])
    await ann.store.send(BOB, b"message")
    await ann.store.create("running", stream())
    await ann.store.write([write(0, 1, "running")])
    assert rows(path) == {"streams": 5, "bodies": 5, "log": 4 * 3 + 1 + 1}
    clock.now += 60 + 11
    await cleaned(path, {"streams": 5, "bodies": 1, "log": 2})
    assert [found and found.kept for found in await ann.store.states(["k0", "running"])] == [False, True]
    clock.now += 60
    await cleaned(path, {"streams": 1, "bodies": 1, "log": 1})


async def test_a_running_stream_is_removed_only_if_its_process_is_forgotten(
    path: Path, create_process: Create, clock: Clock
) -> None:
    ann, bob = await create_process(ANN), await create_process(BOB)
    await ann.store.renew(60)
    await ann.store.create("k", stream(life=20.0))
    await bob.store.create("l", stream(f"{BOB}.1", life=20.0))
    clock.now += 31
    await cleaned(path, {"streams": 1, "bodies": 1, "log": 0})
    assert [found is None for found in await ann.store.states(["k", "l"])] == [False, True]


async def test_the_file_does_not_grow_without_end(path: Path, create_process: Create, clock: Clock) -> None:
    ann = await create_process(ANN)
    sizes = []
    for number in range(12):
        key, writer = f"k{number}", f"{ANN}.{number}"
        await ann.store.create(key, stream(writer))
        await ann.store.write([write(0, 1, key, writer, batch=batch(1, bytes(300_000)), end=end())])
        clock.now += 60 + 60 + 11
        await cleaned(path, {"streams": 0, "bodies": 0, "log": 0})
        sizes.append(await ann.store._do(lambda db: db.execute("PRAGMA page_count").fetchone()[0]))
    assert sizes[-1] == sizes[2]


async def test_a_file_gives_back_what_it_does_not_need(
    path: Path, create_process: Create, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_cleaning, "_FREE_PAGES", 20)
    ann = await create_process(ANN)
    await ann.store.create("k", stream())
    await ann.store.write([write(0, 1, batch=batch(1, bytes(3_000_000)), end=end())])
    clock.now += 60 + 60 + 11
    async with asyncio.timeout(10):
        while await ann.store._do(lambda db: db.execute("PRAGMA page_count").fetchone()[0]) > 50:
            await asyncio.sleep(0.02)
    await ann.store.aclose()  # which writes the file
    assert path.stat().st_size < 200_000


async def test_nothing_erased_is_left_in_the_file(path: Path, create_process: Create) -> None:
    ann = await create_process(ANN)
    await ann.store.create("k", stream(about=b"secret", owner="secret"))
    await ann.store.write([write(0, 1, batch=batch(1, b"secret" * 5000), request=b"secret" * 5000)])
    await ann.store.write([write(1, 1, end=end(b"secret"), decided=end(b"secret"))])
    await ann.store.erase("k")
    await ann.store.aclose()
    assert b"secret" not in path.read_bytes()


# Two real processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_another_process_hears_what_is_written(path: Path, start: Any) -> None:
    ann = Process(SQLiteStore(path), ANN)
    await ann.open()
    await ann.store.create("k", stream())
    child = start(path, "follow")
    assert child.stdout.readline() == "follows\n"
    await ann.store.write([write(0, 1, end=end())])
    await ann.store.send(BOB, b"hello")
    lines = [child.stdout.readline() for _ in range(3)]
    assert lines == [f"k {batch(1, b'1,').hex()}\n", f"k {end().hex()}\n", f" {b'hello'.hex()}\n"]
    assert (await ann.store.renew(60)).alive == {ANN, BOB}
    child.communicate("")
    assert (await ann.store.renew(60)).alive == {ANN}
    await ann.store.aclose()


@pytest.mark.slow
async def test_a_process_that_is_killed_while_it_writes_leaves_nothing_half_done(path: Path, start: Any) -> None:
    ann = Process(SQLiteStore(path), ANN)
    await ann.open()
    child = start(path, "die")
    assert child.stdout.readline() == "writes\n"
    child.kill()
    child.wait()
    assert await ann.store.create("l", stream()) is None
    page = await ann.store.load("k", 0, 1000)
    assert (page.state.count, len(page.batches)) == (3, 1)
    claimed = await ann.store.claim("k", BOB, f"{ANN}.2")
    assert (await ann.store.write([write(3, 4, writer=claimed.writer)]))[0].result == "done"
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    await ann.store.aclose()
