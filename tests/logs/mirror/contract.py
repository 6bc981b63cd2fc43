"""The contract of a log, for a `MirrorLog` on a store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from quart_openai_sse.config import Config
from quart_openai_sse.logs.mirror.log import MirrorLog
from quart_openai_sse.testing import StreamLogContract
from tests.logs.mirror.memory_store import MemoryStore, SharedMemory
from tests.logs.mirror.virtual_time import run
from tests.logs.two_processes import WithoutTwoProcesses

LEASE = 0.4
MAX_BYTES = 16 << 20
CONFIG = Config(max_bytes=MAX_BYTES)


class Clock:
    """The loop's time, and what a test adds to it."""

    later = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.later


class MirrorContract(StreamLogContract):
    """Two logs on one store in memory."""

    max_bytes = MAX_BYTES
    log_class = MirrorLog

    def first(self) -> MirrorLog:
        """The log for a test."""
        return self.log_on(SharedMemory(clock=Clock()))

    def other(self, log: MirrorLog) -> MirrorLog:
        return self.log_on(log.store.memory)

    def log_on(self, memory: SharedMemory) -> MirrorLog:
        log = self.log_class(MemoryStore(memory), CONFIG, lease=LEASE)
        log.memory.clock = memory.clock
        return log

    @asynccontextmanager
    async def unreachable(self, log: MirrorLog) -> AsyncIterator[None]:
        stores = log.store.memory.all_stores
        for store in stores:
            store.disconnect()
        try:
            yield
        finally:
            for store in stores:
                store.connect()

    async def expire(self, log: MirrorLog) -> None:
        memory = log.store.memory
        memory.clock.later += 301
        memory.leases = {process: until + 301 for process, until in memory.leases.items()}

    async def lose(self, log: MirrorLog) -> None:
        memory = log.store.memory
        log.store.freeze()
        memory.lapse(log.process)
        await self.find_the_dead(memory, log.process)
        log.store.thaw()

    async def find_the_dead(self, memory: SharedMemory, process: str) -> None:
        """Waits until the other process has taken *process* for dead, and claimed its streams."""
        had = any(memory.writes(process, stream) for stream in memory.streams.values())
        while process in memory.leases:
            if had and not any(memory.writes(process, stream) for stream in memory.streams.values()):
                break
            await asyncio.sleep(LEASE / 10)


class MirrorContractInOne(WithoutTwoProcesses, MirrorContract):
    """One log. Another one is there while it takes the first for dead."""

    def other(self, log: MirrorLog) -> MirrorLog:
        return log

    async def lose(self, log: MirrorLog) -> None:
        for stream in log._own.all():  # a reader in this process may have had entries that are not stored
            await stream.written_out(1)
        await super().lose(log)

    async def find_the_dead(self, memory: SharedMemory, process: str) -> None:
        third = self.log_on(memory)
        await third.open()
        while process in memory.leases:
            await asyncio.sleep(LEASE / 10)
        await third.aclose()


CONTRACTS = (MirrorContractInOne, MirrorContract)


def names_of(contract: type[MirrorContract]) -> list[str]:
    """The names of the tests of *contract*, without those that it leaves out."""
    return [name for name in dir(contract) if name.startswith("test_") and callable(getattr(contract, name))]


def run_test(contract: type[MirrorContract], name: str) -> None:
    """Runs one test of the contract in virtual time."""
    test = contract()

    async def run_it() -> None:
        await getattr(test, name)(test.first())

    run(run_it())
