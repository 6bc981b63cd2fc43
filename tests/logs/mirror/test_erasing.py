"""Streams are erased in every process."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from quart_openai_sse.config import Config
from quart_openai_sse.errors import LogUnavailable, StreamExpired
from quart_openai_sse.logs import End
from quart_openai_sse.testing.log_contract_base import COMPLETED
from tests.logs.mirror.processes import Processes, begin, in_virtual_time, texts_of


@pytest.mark.parametrize("fault", ["erase", "send"])
def test_erasing_again_after_a_failure_erases_everywhere(fault: str) -> None:
    @in_virtual_time
    async def run(processes: Processes) -> None:
        one, two = await processes.new(), await processes.new()
        writer = await begin(one, "a", "one")
        await writer.close(COMPLETED)
        method, failed = getattr(two.store, fault), []

        async def fails(*args: object) -> object:
            result = None if fault == "send" and not failed else await method(*args)
            if not failed:
                failed.append(True)
                raise LogUnavailable("Lost.")
            return result

        setattr(two.store, fault, fails)
        with pytest.raises(LogUnavailable):
            await two.erase("a")
        await two.erase("a")
        await asyncio.sleep(1)
        for log in (one, two):
            with pytest.raises(StreamExpired):
                await log.read("a")

    run()


@in_virtual_time
async def test_a_process_that_missed_the_message_drops_an_erased_stream(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    writer = await begin(one, "a", "one")
    await writer.close(COMPLETED)
    one.store.deaf = True
    with pytest.raises(LogUnavailable):
        await two.erase("a")
    one.store.connect()
    await asyncio.sleep(1)
    with pytest.raises(StreamExpired):
        await one.read("a")


@pytest.mark.parametrize(
    ("heard", "forgetful", "reason"),
    [
        ("the erasure before the end", True, "erased"),
        ("neither, for a while", False, "erased"),
        # A store that evicts streams cannot tell an eviction from an erasure.
        ("neither, for a while", True, "log_unavailable"),
    ],
)
def test_a_reader_elsewhere_that_waits_for_the_end_of_an_erased_stream_is_not_told_of_another_end(
    heard: str, forgetful: bool, reason: str
) -> None:
    @in_virtual_time
    async def run(processes: Processes) -> None:
        processes.memory.forgetful = forgetful
        one, two = await processes.new(), await processes.new()
        writer = await begin(one, "a", "one")
        reading = asyncio.ensure_future(texts_of(await two.read("a")))
        await asyncio.sleep(1)
        if heard == "neither, for a while":
            two.store.deaf = True
        else:
            two._mirrors.hear = lambda key, data: None
        await writer.close(End("stopped", "by its owner"))
        with suppress(LogUnavailable):  # a process that does not answer
            await one.erase("a")
        two.store.connect()
        assert await reading == (["one"], reason)

    run()


@in_virtual_time
async def test_a_reader_that_learns_of_the_end_after_the_retention_is_told_of_a_failure(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    writer = await begin(one, "a", "one")
    reading = asyncio.ensure_future(texts_of(await two.read("a")))
    await asyncio.sleep(1)
    two.store.deaf = True
    await writer.close(COMPLETED)
    await asyncio.sleep(Config().retention + 1)
    two.store.connect()
    assert await reading == (["one"], "log_unavailable")
