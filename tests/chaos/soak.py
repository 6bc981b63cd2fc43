"""The soak: a steady number of paced streams for a long time, and the memory of the app's process meanwhile."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quart import Quart

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.simulator import serve_simulator
from quart_openai_sse.testing import serve_app
from tests.chaos import leaks, load
from tests.chaos.app import OPTIONS
from tests.chaos.upstream import chaos_upstream
from tests.conftest import TOKENS

PACED = "sim-length-32-rate-2-delay-0.5"
LASTS = 16.5
"""Seconds of such a stream."""
EVERY = 5.0
"""Seconds between two samples."""
TIDYING = 60.0
"""Seconds after which the app's process gives back what it does not use: what is resident then, it needs."""


@dataclass
class Soak:
    """What was seen so far."""

    address: str
    process: asyncio.subprocess.Process
    streams: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """What came of the broken ones, by code."""
    wrong: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the beginning, and the app's resident memory in MB."""
    kept: list[tuple[float, float]] = field(default_factory=list)
    """The same, each time after the app's process has given back what it does not use."""
    malloced: list[tuple[float, float]] = field(default_factory=list)
    """Of it, the MB that the C library has handed out: whatever is larger than 512 bytes, such as buffers."""
    blocks: list[tuple[float, float]] = field(default_factory=list)
    """And how many thousands of smaller blocks the interpreter holds: objects, most of them."""


# The app's process --------------------------------------------------------------------------------------------------


async def serve(upstreams: str) -> None:
    """An app, until its standard input ends."""
    app = Quart(__name__)
    options = {
        **OPTIONS,
        **leaks.options(),
        "connect_timeout": 5,  # the load's process is busy, too
        "total_timeout": 60,
        "linger": 30,
        "retention": 30,
        "tombstone": 60,
        "upstreams": json.loads(upstreams),
    }
    QuartOpenAISSE(app, auth=bearer_tokens(TOKENS), base_url="http://127.0.0.1:9/v1", **options)
    async with serve_app(app) as address:
        sys.stdout.write(f"{address}\n")
        sys.stdout.flush()
        while await asyncio.to_thread(sys.stdin.readline):
            sys.stdout.write(f"{_tidied()} {_malloced()} {sys.getallocatedblocks() / 1000}\n")
            sys.stdout.flush()


def _tidied() -> float:
    """The resident memory of this process, in MB, without cycles and without what the allocator holds in reserve."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory(os.getpid())


_MALLINFO = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _Mallinfo(ctypes.Structure):
    """See mallinfo2(3)."""

    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO.split()]


def _malloced() -> float:
    """What the C library has handed out, in MB."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo
    found = mallinfo2()
    return (found.uordblks + found.hblkhd) / (1 << 20)


@asynccontextmanager
async def served(upstreams: list[dict[str, Any]]) -> AsyncIterator[Soak]:
    """An app before these upstreams, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos", "serve", json.dumps(upstreams, default=list)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Soak((await process.stdout.readline()).decode().strip(), process)
    finally:
        process.stdin.close()
        await process.wait()


# The load's process -------------------------------------------------------------------------------------------------


async def work(soak: Soak, chance: random.Random) -> None:
    """One stream after the other: read, left, resumed; now and then a broken one before it."""
    await asyncio.sleep(chance.random() * LASTS)
    while True:
        if chance.random() < 0.3:
            await _broken(soak, chance)
        habit = chance.choices([_read, _left, _resumed], [75, 10, 15])[0]
        try:
            async with asyncio.timeout(60):
                await habit(soak, chance)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            soak.wrong[f"{habit.__name__[1:]}: {type(error).__name__}"] += 1


async def _read(soak: Soak, chance: random.Random) -> None:
    answer = await load.ask(soak.address, PACED)
    _note(soak, "read to the end", answer)


async def _left(soak: Soak, chance: random.Random) -> None:
    await load.ask(soak.address, PACED, leave_after=chance.random() * LASTS)
    soak.streams["left"] += 1


async def _resumed(soak: Soak, chance: random.Random) -> None:
    first = await load.ask(soak.address, PACED, route="/v1/streams", leave_after=1 + chance.random() * 10)
    if not first.stream_id:  # it left before it was told the stream's address
        soak.streams["left"] += 1
        return
    _note(soak, "resumed", await load.resume(soak.address, first))


def _note(soak: Soak, what: str, answer: load.Answer) -> None:
    soak.streams[what] += 1
    if answer.outcome != "completed":
        soak.wrong[f"{what}: {answer.status} {answer.outcome}"] += 1


async def _broken(soak: Soak, chance: random.Random) -> None:
    cell = chance.choice([cell for cell in leaks.CELLS if cell.expected.code and cell.expected.code != "total_timeout"])
    members = {"stream": cell.window.stream, "n": cell.fault.n}
    answer = await load.ask(soak.address, cell.model, leave_after=30, **members)
    soak.streams["broken"] += 1
    soak.failures[answer.outcome] += 1
    if answer.outcome in ("completed", "cut"):
        soak.wrong[f"{cell.model}: {answer.outcome}"] += 1


# Figures ------------------------------------------------------------------------------------------------------------


def memory(pid: int) -> float:
    """The resident memory of a process, in MB."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def slope(samples: list[tuple[float, float]]) -> float:
    """So much per hour, by least squares."""
    n = len(samples)
    mean_x, mean_y = sum(x for x, _ in samples) / n, sum(y for _, y in samples) / n
    square = sum((x - mean_x) ** 2 for x, _ in samples)
    return 3600 * sum((x - mean_x) * (y - mean_y) for x, y in samples) / square if square else 0.0


async def run(write: Callable[[str], object], *, minutes: float, streams: int) -> bool:
    """Prints the figures; whether nothing went wrong. Memory is for the reader to judge."""
    async with serve_simulator() as simulator, chaos_upstream() as upstream:
        paced = {"name": "simulator", "base_url": simulator.base_url, "models": [PACED]}
        async with served([paced, *upstream.upstreams]) as soak:
            workers = [asyncio.ensure_future(work(soak, random.Random(number))) for number in range(streams)]
            await _sample(soak, minutes * 60, write)
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)
    return _report(soak, minutes * 60, write)


async def _sample(soak: Soak, seconds: float, write: Callable[[str], object]) -> None:
    process, began, tidied = soak.process, time.monotonic(), 0.0
    assert process.stdin is not None
    assert process.stdout is not None
    while (at := time.monotonic() - began) < seconds:
        soak.samples.append((at, memory(process.pid)))
        if at >= tidied:
            tidied += min(TIDYING, seconds / 10)
            process.stdin.write(b"\n")
            figures = [float(figure) for figure in (await process.stdout.readline()).split()]
            for samples, figure in zip((soak.kept, soak.malloced, soak.blocks), figures, strict=True):
                samples.append((at, figure))
            write(f"{at:6.0f} s   {soak.samples[-1][1]:7.1f} MB   ")
            write("{:7.1f} MB in use   {:6.1f} MB malloced   {:7.1f} thousand blocks   ".format(*figures))
            write(f"{soak.streams.total()} streams\n")
        await asyncio.sleep(EVERY)


def _report(soak: Soak, seconds: float, write: Callable[[str], object]) -> bool:
    warm = seconds / 4
    write("\n")
    for title, samples, unit in (
        ("resident memory", soak.samples, "MB"),
        ("memory in use", soak.kept, "MB"),
        ("malloced", soak.malloced, "MB"),
        ("blocks", soak.blocks, "thousand"),
    ):
        after = [sample for sample in samples if sample[0] >= warm]
        write(f"{title}, after {warm:.0f} s of warm-up: {slope(after):+.2f} {unit} per hour, {len(after)} samples")
        write(f", at most {max(value for _, value in samples):.1f}, first {after[0][1]:.1f}, last {after[-1][1]:.1f}\n")
    for title, counter in (("streams", soak.streams), ("failures of the broken ones", soak.failures)):
        write(f"\n{title}: {counter.total()}\n")
        for what, count in counter.most_common():
            write(f"  {what:40} {count:6}\n")
    write(f"\nwrong: {soak.wrong.total()}\n")
    for what, count in soak.wrong.most_common():
        write(f"  {what:60} {count:6}\n")
    return not soak.wrong
