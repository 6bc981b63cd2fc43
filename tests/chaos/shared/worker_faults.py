"""The faults of a worker: killed, frozen beyond its lease, with a clock that jumps."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.chaos.shared.scene import Scene


@asynccontextmanager
async def killed(scene: Scene) -> AsyncIterator[None]:
    """`kill -9` of the first worker."""
    await scene.first.kill()
    yield


@asynccontextmanager
async def frozen(scene: Scene) -> AsyncIterator[None]:
    """SIGSTOP, and in the end SIGCONT, of the first worker."""
    scene.first.send(signal.SIGSTOP)
    yield
    scene.first.send(signal.SIGCONT)


@asynccontextmanager
async def frozen_briefly(scene: Scene) -> AsyncIterator[None]:
    """SIGSTOP of the first worker, and SIGCONT within its lease."""
    scene.first.send(signal.SIGSTOP)
    asyncio.get_running_loop().call_later(1, scene.first.send, signal.SIGCONT)
    yield


@asynccontextmanager
async def clock_jumps(scene: Scene) -> AsyncIterator[None]:
    """The clock of the first worker is set, and stays so."""
    scene.first.send(signal.SIGUSR1)
    yield
