"""The streams of other processes, and their readers here."""

from __future__ import annotations

import asyncio

import pytest

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs import Entry
from quart_openai_sse.testing.log_contract_base import entry
from tests.logs.mirror.processes import Processes, begin, in_virtual_time


@in_virtual_time
async def test_a_busy_reader_whose_place_leaves_the_window_goes_on_in_the_store(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    writer = await begin(one, "a", "one")
    reader = await two.read("a")
    assert (await anext(reader)).first == 1
    writer.append([entry("two")])
    await asyncio.sleep(1)
    held: list[tuple[str, bytes]] = []
    two.store.deliver = lambda key, message: held.append((key, message))
    writer.append([Entry(b"x" * (300 << 10))] * 2)
    await asyncio.sleep(1)
    reading = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    for key, message in held:  # the window has room for the last entry only
        two._messages.hear(key, message)
    batch = await reading
    assert (batch.first, batch.entries[0]) == (2, entry("two"))


@in_virtual_time
async def test_the_memory_of_mirrors_is_given_back(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    writer = await begin(one, "a", "x" * 1000)
    before = two.size
    gate = asyncio.Event()
    load = two.store.load

    async def slow(*args: object, **options: object) -> object:
        page = await load(*args, **options)
        await gate.wait()
        return page

    two.store.load = slow
    reading = asyncio.ensure_future(two.read("a"))  # the client disconnects while the stream is opened
    await asyncio.sleep(1)
    reading.cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.sleep(1)
    assert two.size == before

    reader = await two.read("a")  # the client disconnects while a gap is filled
    two.store.miss(1)
    gate.clear()
    writer.append([entry("y" * 1000)])
    await asyncio.sleep(1)
    writer.append([entry("z" * 1000)])
    await asyncio.sleep(1)
    await reader.aclose()
    gate.set()
    await asyncio.sleep(1)
    assert two.size == before


@in_virtual_time
async def test_closing_a_reader_that_waits_for_a_page_ends_its_iteration(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    writer = await begin(one, "a")
    for _ in range(40):
        writer.append([Entry(b"x" * (50 << 10))])
    await asyncio.sleep(5)
    reader = await two.read("a")
    two.store.freeze()
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(1)
    await reader.aclose()
    async with asyncio.timeout(1):
        with pytest.raises(StopAsyncIteration):
            await waiting
    two.store.thaw()


@in_virtual_time
async def test_reading_again_waits_little_for_a_store_that_hangs(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    await begin(one, "a", "one")
    leave = two.store.leave

    async def hangs(*args: object, **options: object) -> None:
        await asyncio.sleep(60)
        raise LogUnavailable("The store is away.")

    two.store.leave = hangs
    await (await two.read("a")).aclose()
    await asyncio.sleep(1)  # it is telling the store that it has left
    for _ in range(2):
        async with asyncio.timeout(3):
            with pytest.raises(LogUnavailable):
                await two.read("a")
    two.store.leave = leave
    await asyncio.sleep(100)
    reader = await two.read("a")
    assert [entry.data for entry in (await anext(reader)).entries] == [b"one"]
    await reader.aclose()
