"""Random steps and faults on a store in memory, in virtual time: the same seed does the same."""

from __future__ import annotations

import asyncio

from quart_openai_sse.config import Config
from tests.logs.mirror.chances.world import World
from tests.logs.mirror.contract import MirrorContract
from tests.logs.mirror.memory_store import MemoryStore, SharedMemory
from tests.logs.mirror.virtual_time import run

LEASE = 15


async def play(world: World, steps: int) -> None:
    """Does *steps* random steps and ends all faults. What went wrong is in the world's `failures`."""
    for log in world.logs:
        await log.open()
    await world.play(steps)
    for log in world.logs:
        await log.aclose()
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    if left and not world.failures:
        world.failures.append(f"tasks are left: {left}")


def play_in_virtual_time(seed: int, steps: int = 40) -> World:
    """Returns what has happened."""
    worlds: list[World] = []

    async def begin() -> None:
        memory = SharedMemory(clock=asyncio.get_running_loop().time)
        one, other = MemoryStore(memory), MemoryStore(memory)
        log_class = MirrorContract.log_class
        logs = log_class(one, Config(), lease=LEASE), log_class(other, Config(), lease=LEASE)
        worlds.append(World(seed, logs, (one, other), memory))
        await play(worlds[0], steps)

    try:
        run(begin())
    except RuntimeError as error:  # nothing goes on, or something turns without end
        worlds[0].failures.append(str(error))
    return worlds[0]
