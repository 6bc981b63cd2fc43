"""The log is closed and opened again."""

from __future__ import annotations

import asyncio

from quart_openai_sse.testing.log_contract_base import COMPLETED, entry
from tests.logs.mirror.processes import Processes, begin, in_virtual_time, texts_of


@in_virtual_time
async def test_a_reader_that_is_closed_after_its_log_leaves_nothing_running(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    await begin(one, "a", "one")
    reader = await two.read("a")
    await two.aclose()
    two.store.disconnect()
    await reader.aclose()
    await asyncio.sleep(60)
    assert not two._tasks


@in_virtual_time
async def test_a_waiting_reader_ends_when_its_log_is_closed_and_new_ones_follow_when_it_is_opened(
    processes: Processes,
) -> None:
    one, two = await processes.new(), await processes.new()
    writer = await begin(one, "a", "one")
    old = await two.read("a", after="1")
    waiting = asyncio.ensure_future(anext(old))
    await asyncio.sleep(1)
    await two.aclose()
    await two.open()
    new = await two.read("a", after="1")
    writer.append([entry("two")])
    await writer.close(COMPLETED)
    async with asyncio.timeout(60):
        assert await texts_of(new) == (["two"], "completed")
    waiting.cancel()
