"""Processes that are ended with whatever they have started, if nobody waits for them any longer."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


async def communicate(
    command: Sequence[object], data: bytes = b"", *, env: Mapping[str, str], cwd: Path | None = None
) -> tuple[int, bytes, str]:
    """Runs *command* to its end with *data* as its input; its exit code, its output and its errors."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        cwd=cwd,
        start_new_session=True,
    )
    try:
        output, errors = await process.communicate(data)
    finally:
        await end(process, patience=0)
    return process.returncode or 0, output, errors.decode(errors="replace")


async def end(process: asyncio.subprocess.Process, *, patience: float) -> None:
    """Ends a process that leads a session, if it still runs: by SIGTERM, and after *patience* seconds by SIGKILL."""
    if process.returncode is None and patience:
        process.terminate()
        try:
            async with asyncio.timeout(patience):
                await process.wait()
        except TimeoutError:
            pass
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)  # a session of its own: nobody else is in it
        await process.wait()
