"""The faults of an SQLite file: locked, removed, on a full disk, and workers that are killed while they write."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path

from tests.chaos.shared.reading import start
from tests.chaos.shared.scene import Fault, Scene, Stage, nothing
from tests.chaos.shared.worker_faults import clock_jumps, frozen, frozen_briefly, killed

DEADLINE = 6.0
"""Seconds after which a call gives up. For a lock it waits 2 s, after up to 3 s for its turn."""


@asynccontextmanager
async def file(
    folder: Path, *, strike: Callable[[Path, Scene], AbstractAsyncContextManager[None]], small: bool = False
) -> AsyncIterator[Stage]:
    """A file; *small*: on a disk with room for 64 MiB, which only root can mount."""
    with ExitStack() as stack:
        place = stack.enter_context(_small_disk(folder / "small")) if small else folder
        path = place / "streams.db"
        yield Stage(f"sqlite:///{path}", partial(strike, path), deadline=DEADLINE)


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@asynccontextmanager
async def of_worker(
    path: Path, scene: Scene, *, strike: Callable[[Scene], AbstractAsyncContextManager[None]]
) -> AsyncIterator[None]:
    """A fault of a worker."""
    async with strike(scene):
        yield


@asynccontextmanager
async def locked(path: Path, scene: Scene, *, how: str) -> AsyncIterator[None]:
    """Another program writes, and does not end."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as db:
        db.execute(f"BEGIN {how}")
        yield
        db.execute("ROLLBACK")


@asynccontextmanager
async def full(path: Path, scene: Scene) -> AsyncIterator[None]:
    """There is no room on its disk."""
    junk = path.with_name("junk")
    with junk.open("wb", buffering=0) as filled, contextlib.suppress(OSError):
        while True:
            filled.write(os.urandom(4096))
    filling = asyncio.ensure_future(_keep_full(junk))
    yield
    filling.cancel()
    await asyncio.wait([filling])
    junk.unlink()


async def _keep_full(junk: Path) -> None:
    while True:
        with contextlib.suppress(OSError), junk.open("ab", buffering=0) as more:
            more.write(os.urandom(4096))
        await asyncio.sleep(0.05)


@asynccontextmanager
async def removed(path: Path, scene: Scene) -> AsyncIterator[None]:
    """Somebody tidies up."""
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)
    yield


@asynccontextmanager
async def killed_writing(path: Path, scene: Scene) -> AsyncIterator[None]:
    """`kill -9` of the first worker while it writes as much as it can."""
    await asyncio.gather(*(start(scene.first.port, scene.site.model(5000, 0)) for _ in range(20)))
    await scene.first.kill()
    yield
    with closing(sqlite3.connect(path)) as db:
        (said,) = db.execute("PRAGMA integrity_check").fetchone()
    if said != "ok":
        scene.wrong.append(f"integrity_check: {said}")


def _worker(
    strike: Callable[[Scene], AbstractAsyncContextManager[None]],
) -> Callable[[Path], AbstractAsyncContextManager[Stage]]:
    return partial(file, strike=partial(of_worker, strike=strike))


SQLITE: Mapping[str, Fault] = {
    "SQLite: no fault": Fault(_worker(nothing), 2),
    "SQLite: a worker is killed (kill -9)": Fault(_worker(killed), 6, "killed"),
    "SQLite: a worker is killed while it writes": Fault(
        partial(file, strike=killed_writing), 6, "killed", is_quick=True
    ),
    "SQLite: a worker is frozen for 6 s (SIGSTOP)": Fault(_worker(frozen), 6, "frozen"),
    "SQLite: a worker is frozen for 1 s (SIGSTOP)": Fault(_worker(frozen_briefly), 3),
    "SQLite: a worker's clock jumps by 60 s": Fault(_worker(clock_jumps), 6, environment={"CHAOS_JUMP": "60"}),
    "SQLite: a worker's clock jumps back by 60 s": Fault(_worker(clock_jumps), 6, environment={"CHAOS_JUMP": "-60"}),
    "SQLite: another program writes for 4 s": Fault(partial(file, strike=partial(locked, how="IMMEDIATE")), 4),
    "SQLite: another program writes for 10 s": Fault(partial(file, strike=partial(locked, how="IMMEDIATE")), 10),
    "SQLite: another program locks the file for 10 s": Fault(
        partial(file, strike=partial(locked, how="EXCLUSIVE")), 10
    ),
    "SQLite: the disk is full for 8 s": Fault(partial(file, strike=full, small=True), 8),
    "SQLite: the file is removed": Fault(partial(file, strike=removed), 4),
}
"""By name. With a lease of 2 s instead of 15."""
