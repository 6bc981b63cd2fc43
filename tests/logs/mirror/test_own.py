"""The readers in other processes, as the producer of a stream sees them."""

from __future__ import annotations

import asyncio

from quart_openai_sse.testing.log_contract_base import COMPLETED, Watched, entry
from tests.logs.mirror.processes import LEASE, Processes, begin, in_virtual_time, texts_of


@in_virtual_time
async def test_a_local_reader_has_the_whole_linger(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    writer = await begin(one, "a", "one")
    left = Watched(writer, linger=30).left
    await (await two.read("a")).aclose()
    await asyncio.sleep(20)
    mine = await one.read("a")
    await asyncio.sleep(8)
    await mine.aclose()
    await asyncio.sleep(25)
    assert not left.is_set()
    await asyncio.sleep(10)
    assert left.is_set()


@in_virtual_time
async def test_a_stream_that_is_read_elsewhere_goes_on_after_the_store_has_forgotten_everything(
    processes: Processes,
) -> None:
    one, two = await processes.new(), await processes.new()
    writer = await begin(one, "a", "one")
    reader = await two.read("a")
    await asyncio.sleep(1)
    watched = Watched(writer, linger=0)
    processes.memory.flush()
    writer.append([entry("two")])
    await asyncio.sleep(LEASE)
    assert not watched.left.is_set()
    await writer.close(COMPLETED)
    assert await texts_of(reader) == (["one", "two"], "completed")
