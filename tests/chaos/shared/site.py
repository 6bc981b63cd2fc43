"""Several workers on one store, as processes, before a simulator whose texts are known."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from quart_openai_sse.simulator import Simulator, answer, serve_simulator
from tests.chaos.shared.reading import Reply, question, request

ROOT = Path(__file__).parents[3]
LEASE = 2.0
"""Seconds; the default is 15, which makes every row longer and none better."""
OPTIONS: dict[str, Any] = {
    "log_lease": LEASE,
    "keepalive": 1,
    "linger": 60,
    "retention": 120,
    "max_streams_per_principal": 1000,
    "max_readers_per_principal": 10_000,
}


@dataclass
class Worker:
    """A process of the app."""

    process: asyncio.subprocess.Process
    port: int
    errors: Path
    """What it has written to stderr."""

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    async def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        await self.process.wait()

    async def end(self) -> None:
        """SIGTERM, and after 10 s `kill -9`."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                async with asyncio.timeout(10):
                    await self.process.wait()
            except TimeoutError:
                await self.kill()

    async def ready(self) -> Reply:
        """What `/ready` says."""
        return await request(self.port, "GET", "/v1/ready")


class NotStarted(Exception):
    """A worker has ended before it was ready; with its stderr."""


@dataclass
class Site:
    """The workers, and what is before and behind them."""

    folder: Path
    simulator: Simulator
    options: dict[str, Any]
    workers: list[Worker] = field(default_factory=list)
    _numbers: Any = field(default_factory=lambda: count(1))

    @property
    def ends(self) -> Path:
        """What the workers' `on_end` has written: a line for each call."""
        return self.folder / "ends.txt"

    def calls(self, stream_id: str) -> list[str]:
        """The calls of `on_end` for a stream: outcome, reason, attempt, and process."""
        lines = self.ends.read_text().splitlines() if self.ends.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{stream_id} ")]

    async def add(self, **environment: str) -> Worker:
        """Starts another worker."""
        errors = self.folder / f"worker{next(self._numbers)}.txt"
        with errors.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.chaos.shared.worker", json.dumps(self.options)),
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "CHAOS_ENDS": str(self.ends), **environment},
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
            )
        assert process.stdout is not None
        port = (await process.stdout.readline()).strip()
        if not port:
            await process.wait()
            raise NotStarted(errors.read_text())
        worker = Worker(process, int(port), errors)
        self.workers.append(worker)
        return worker

    def model(self, tokens: int, rate: float) -> str:
        """A model that nobody has asked for yet, which writes so many tokens, so many in a second."""
        return f"sim-length-{tokens}-rate-{rate:g}-delay-0-no{next(self._numbers)}"

    async def until_ready(self, *workers: Worker, patience: float = 30) -> float:
        """Waits until these workers are ready; the seconds that it took. Raises `TimeoutError`."""
        began = time.monotonic()
        async with asyncio.timeout(patience):
            for worker in workers:
                while (await worker.ready()).status != 200:
                    await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def upstream_closes(self, model: str, patience: float) -> float | None:
        """Waits until the upstream request of *model* is over; the seconds that it took, or `None`: not in time."""
        began = time.monotonic()
        counters = self.simulator.counters
        try:
            async with asyncio.timeout(patience):
                await counters.until(
                    lambda: all(each.outcome != "running" for each in counters.requests if each.model == model)
                )
        except TimeoutError:
            return None
        return time.monotonic() - began


def text_of(model: str) -> str:
    """What the upstream answers as *model*."""
    return answer({"model": model, "messages": question(model)})


@asynccontextmanager
async def serve_site(folder: Path, log: str, *, workers: int, **options: Any) -> AsyncIterator[Site]:
    """A site whose streams are kept in *log*."""
    async with serve_simulator() as simulator:
        site = Site(folder, simulator, {**OPTIONS, "log": log, "base_url": simulator.base_url, **options})
        try:
            await asyncio.gather(*(site.add() for _ in range(workers)))
            yield site
        finally:
            await asyncio.gather(*(worker.end() for worker in site.workers))
