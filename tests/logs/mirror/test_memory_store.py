"""The store in memory keeps the contract of a store, and has the faults that its description names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs.mirror import State
from tests.conftest import Clock
from tests.logs.mirror.memory_store import MemoryStore, SharedMemory
from tests.logs.mirror.store_contract import StoreContract
from tests.logs.mirror.store_contract_base import ANN, BOB, Process, batch, stream, write


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore(SharedMemory(clock=Clock()))

    def other(self, store: MemoryStore) -> MemoryStore:
        return MemoryStore(store.memory)

    async def pass_time(self, store: MemoryStore, seconds: float) -> None:
        store.memory.clock.now += seconds

    @asynccontextmanager
    async def unreachable(self, store: MemoryStore) -> AsyncIterator[None]:
        store.disconnect()
        yield
        store.connect()

    async def cut(self, store: MemoryStore) -> None:
        store.deaf = True
        store.connect()

    async def forget(self, store: MemoryStore) -> None:
        store.memory.flush()


@pytest.fixture
async def ann() -> Process:
    return await open_process(SharedMemory(clock=Clock()), ANN)


@pytest.fixture
async def bob(ann: Process) -> Process:
    bob = await open_process(ann.store.memory, BOB)
    await ann.store.create("k", stream())
    await bob.store.follow("k")
    return bob


async def open_process(memory: SharedMemory, name: str) -> Process:
    process = Process(MemoryStore(memory), name)
    await process.open()
    await process.store.renew(60)
    return process


async def state(process: Process) -> State | None:
    return (await process.store.states(["k"]))[0]


async def test_a_process_without_a_connection_reaches_nothing_and_hears_nothing(ann: Process, bob: Process) -> None:
    bob.store.disconnect()
    await ann.store.write([write(0, 1)])
    with pytest.raises(LogUnavailable):
        await bob.store.load("k", 0, 100)
    bob.store.connect()
    await bob.until(lambda: bob.again)
    assert bob.heard == []
    assert (await state(bob)).count == 1


async def test_a_call_may_have_been_done_although_it_failed(ann: Process, bob: Process) -> None:
    ann.store.faults += ["after", "before", ""]
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            await ann.store.write([write(0, 1)])
        assert (await state(bob)).count == 1
    (written,) = await ann.store.write([write(0, 1)])
    assert written.result == "done"
    await bob.hears(("k", batch(1, b"1,")))


async def test_messages_are_missed(ann: Process, bob: Process) -> None:
    bob.store.miss(1)
    await ann.store.write([write(0, 1)])
    await ann.store.write([write(1, 2)])
    await bob.hears(("k", batch(2, b"2,")))
    assert not bob.again


async def test_a_frozen_process_does_nothing_until_it_is_thawed(ann: Process, bob: Process) -> None:
    ann.store.freeze()
    bob.store.freeze()
    writing = asyncio.create_task(ann.store.write([write(0, 1)]))
    ann.store.memory.lapse(ANN)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not writing.done()
    ann.store.thaw()
    await writing
    await asyncio.sleep(0)
    assert bob.heard == []
    bob.store.thaw()
    await bob.hears(("k", batch(1, b"1,")))
    assert (await bob.store.renew(60)).overdue == {ANN}


async def test_a_stream_whose_batches_were_evicted_is_written_again(ann: Process, bob: Process) -> None:
    await ann.store.write([write(0, 1)])
    ann.store.memory.forget_batches("k")
    assert [each.result for each in await ann.store.write([write(1, 2)])] == ["gone"]
    assert await state(bob) is None
    held = await bob.store.create("k", stream(f"{BOB}.1"))
    assert held is not None, "a request that is repeated would be produced twice"
    assert await ann.store.create("k", stream()) is None
    assert [each.count for each in await ann.store.write([write(0, 2)])] == [2]


async def test_a_stream_that_was_forgotten_is_unknown(ann: Process, bob: Process) -> None:
    ann.store.memory.forget("k")
    assert await state(bob) is None
    assert (await ann.store.renew(60)).known
