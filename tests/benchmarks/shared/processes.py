"""The programs of `process`, each of them a worker's log, and what they are told."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import SERVER_CORE, on_core
from tests.benchmarks.prepare import python_with
from tests.benchmarks.shared.workers import PACKAGES
from tests.matrix.environments import ROOT, Failed
from tests.matrix.processes import end


class Process:
    """One of them."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def do(self, what: str, **how: Any) -> dict[str, Any]:
        """Has it do something; its answer. Raises `Failed` if it has ended."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps({"do": what, **how}).encode() + b"\n")
        await stdin.drain()
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """Its next answer."""
        assert self._process.stdout is not None
        async with asyncio.timeout(120):
            line = await self._process.stdout.readline()
        if not line:
            raise Failed("a process has ended; what it said is above")
        found: dict[str, Any] = json.loads(line)
        return found


@asynccontextmanager
async def start_process(address: str, cache: Path, command: Sequence[str] = ()) -> AsyncIterator[Process]:
    """A process whose log has this *address*."""
    python = await python_with(cache, PACKAGES)
    with on_core(SERVER_CORE):
        process = await asyncio.create_subprocess_exec(
            *(command or (str(python), "-m", "tests.benchmarks.shared.process")),
            address,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=1 << 24,
            start_new_session=True,
        )
    try:
        started = Process(process)
        await started.answer()
        yield started
    finally:
        await end(process, patience=5)
