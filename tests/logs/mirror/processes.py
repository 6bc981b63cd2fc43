"""Several processes with a log each, on one store in memory, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.logs import Reader, Writer
from quart_openai_sse.logs.mirror.log import MirrorLog
from quart_openai_sse.testing.log_contract_base import about, entry
from tests.logs.mirror.memory_store import MemoryStore, SharedMemory
from tests.logs.mirror.virtual_time import run

LEASE = 16.0


class Processes:
    """Opens the logs of processes, and closes them after the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.memory = SharedMemory(clock=asyncio.get_running_loop().time)
        self._stack = stack

    async def new(self, **options: Any) -> MirrorLog:
        """The open log of another process."""
        log = MirrorLog(MemoryStore(self.memory), Config(), lease=LEASE, **options)
        await log.open()
        self._stack.push_async_callback(log.aclose)
        return log


def in_virtual_time(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Makes a test of a coroutine function of `Processes`. It may take an hour of the loop's time."""

    def run_test() -> None:
        async def main() -> None:
            async with asyncio.timeout(3600), AsyncExitStack() as stack:
                await test(Processes(stack))

        run(main())

    run_test.__name__, run_test.__doc__ = test.__name__, test.__doc__
    return run_test


async def begin(log: MirrorLog, key: str, *texts: str, digest: str = "", **members: Any) -> Writer:
    """A new stream with entries, which are in the store."""
    writer = await log.create(key, about=about(**members), digest=digest, retain=True)
    assert writer is not None
    await writer.stored()
    if texts:
        writer.append([entry(text) for text in texts])
    await asyncio.sleep(0.3)
    return writer


async def texts_of(reader: Reader) -> tuple[list[str], str]:
    """The texts of the remaining entries, and how the stream ended; closes the reader."""
    texts: list[str] = []
    end = ""
    async for batch in reader:
        texts += [each.data.decode() for each in batch.entries]
        if batch.end is not None:
            end = batch.end.reason or batch.end.outcome
    await reader.aclose()
    return texts, end
