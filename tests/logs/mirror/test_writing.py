"""What is written to the store, and when."""

from __future__ import annotations

import asyncio

from quart_openai_sse.logs import End, Entry
from quart_openai_sse.testing.log_contract_base import COMPLETED, about, entry
from tests.logs.mirror.processes import Processes, begin, in_virtual_time, texts_of


@in_virtual_time
async def test_a_stream_that_cannot_be_written_does_not_hold_up_the_others(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    bad = await begin(one, "bad", "one")
    good = await begin(one, "good", "one")
    closing = asyncio.ensure_future(bad.close(End("completed", usage={"total_tokens": 10**30})))
    await asyncio.sleep(1)
    good.append([entry("two")])
    await good.close(COMPLETED)
    assert await texts_of(await two.read("good")) == (["one", "two"], "completed")
    closing.cancel()
    # Its own readers are told that it failed, instead of waiting for ever.
    async with asyncio.timeout(60):
        texts, end = await texts_of(await two.read("bad"))
    assert texts == ["one"]
    assert end != ""


@in_virtual_time
async def test_a_stream_that_cannot_be_created_does_not_hold_up_the_others(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    bad = await one.create("bad", about=about(model="\ud800"), digest="", retain=True)
    good = await begin(one, "good", "one")
    assert bad is not None
    bad.append([entry("one")])
    await asyncio.sleep(1)
    good.append([entry("two")])
    await good.close(COMPLETED)
    assert await texts_of(await two.read("good")) == (["one", "two"], "completed")


@in_virtual_time
async def test_long_streams_are_written_in_one_call(processes: Processes) -> None:
    one = await processes.new()
    writers = [await begin(one, str(number)) for number in range(64)]
    for writer in writers:
        for _ in range(8):
            writer.append([Entry(b"x" * (60 << 10))])
    await asyncio.sleep(5)
    one.store.calls.clear()
    for writer in writers:
        writer.append([entry("more")])
    await asyncio.sleep(1)
    assert [name for _, name in one.store.calls].count("write") == 1
