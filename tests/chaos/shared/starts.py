"""Stores that can never be used: a worker on one does not start, and says why in one sentence, without the password."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.shared.site import NotStarted, serve_site
from tests.redis_servers import free_ports, redis_server

PASSWORD = "hunter2"
LIMIT = 30.0
"""Seconds from the start of the process to its end; most of them are Python's."""


@dataclass
class Unusable:
    """A store that can never be used."""

    log: str
    says: str
    """Part of the sentence."""
    options: dict[str, object] = field(default_factory=dict)
    tried: Callable[[], int] = lambda: 1
    """How often it was tried, if the server knows."""


@asynccontextmanager
async def wrong_password(folder: Path) -> AsyncIterator[Unusable]:
    """A server with another password."""
    with redis_server(folder / "redis", password="right") as server:

        def tried() -> int:
            with closing(server.client()) as client:
                return int(client.info("commandstats")["cmdstat_auth"]["failed_calls"])

        log = f"redis+unix://{server.socket}?password={PASSWORD}"
        yield Unusable(log, "Redis refuses the user name or the password", tried=tried)


@asynccontextmanager
async def replica(folder: Path) -> AsyncIterator[Unusable]:
    """A replica, which is read-only."""
    first, second = free_ports(2)
    with (
        redis_server(folder / "first", port=first),
        redis_server(folder / "second", "--replicaof", f"127.0.0.1 {first}", port=second) as server,
    ):
        yield Unusable(server.url, "replica")


@asynccontextmanager
async def old(folder: Path) -> AsyncIterator[Unusable]:
    """What says that it is Redis 6.0."""
    info = b"# Server\r\nredis_version:6.0.16\r\nredis_mode:standalone\r\nrole:master\r\n"
    answers = {
        b"INFO": b"$%d\r\n%b\r\n" % (len(info), info),
        b"PING": b"+PONG\r\n",
        b"HELLO": b"-ERR unknown command\r\n",
    }

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                count = int((await reader.readline())[1:])
                words = []
                for _ in range(count):
                    size = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                writer.write(answers.get(words[0].upper(), b"+OK\r\n"))
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield Unusable(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", "this is Redis 6.0.16; version 6.2")


@asynccontextmanager
async def other_version(folder: Path) -> AsyncIterator[Unusable]:
    """A file of a later version of the package."""
    path = folder / "streams.db"
    async with serve_site(folder, f"sqlite:///{path}", workers=1):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA user_version = 99")
    yield Unusable(f"sqlite:///{path}", "was written by a version of this package")


@asynccontextmanager
async def other_program(folder: Path) -> AsyncIterator[Unusable]:
    """The database of another program."""
    path = folder / "other.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE people (name)")
    yield Unusable(f"sqlite:///{path}", "is the SQLite database of another program")


@asynccontextmanager
async def no_database(folder: Path) -> AsyncIterator[Unusable]:
    """Not a database."""
    path = folder / "text.db"
    path.write_text("Not a database, and longer than the header of one. " * 10)
    yield Unusable(f"sqlite:///{path}", "is not an SQLite database")


UNUSABLE: Mapping[str, Callable[[Path], AbstractAsyncContextManager[Unusable]]] = {
    "a wrong password": wrong_password,
    "a read-only replica": replica,
    "a server older than 6.2": old,
    "a file of another version": other_version,
    "a file of another program": other_program,
    "a file that is no database": no_database,
}


async def refused(name: str) -> tuple[str, list[str]]:
    """The sentence that a worker wrote, and what is wrong with it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with UNUSABLE[name](Path(folder)) as store:
            began, said = time.monotonic(), ""
            try:
                async with serve_site(Path(folder), store.log, workers=1):
                    pass
            except NotStarted as error:
                said = str(error)
            took = time.monotonic() - began
            sentences = [line for line in said.splitlines() if store.says in line]
            wrong = [] if sentences else [f"it should have said {store.says!r}, but said {said!r}"]
            wrong += [f"the password is in {said!r}"] if PASSWORD in said else []
            wrong += [f"it took {took:.1f} s"] if took > LIMIT else []
            wrong += [f"tried {tried} times"] if (tried := store.tried()) != 1 else []
            return (sentences or [""])[-1].strip(), wrong
