"""A stream that the store does not know is not missing while a process may have it."""

from __future__ import annotations

import asyncio

import pytest

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.testing.log_contract_base import COMPLETED
from tests.logs.mirror.processes import Processes, begin, in_virtual_time, texts_of


@pytest.mark.parametrize("counts", [True, False], ids=["the store counts", "the store does not count"])
def test_a_forgotten_stream_is_not_missing_while_its_process_is_not_heard(counts: bool) -> None:
    @in_virtual_time
    async def run(processes: Processes) -> None:
        processes.memory.counts = counts
        one, two = await processes.new(), await processes.new()
        writer = await begin(one, "a", "one")
        one.store.disconnect()
        processes.memory.stores.remove(one.store)  # it has not subscribed again
        processes.memory.flush()
        for _ in range(3):
            with pytest.raises(LogUnavailable):
                await two.read("a")
        processes.memory.stores.append(one.store)
        one.store.connect()
        await asyncio.sleep(3)
        await writer.close(COMPLETED)
        assert await texts_of(await two.read("a")) == (["one"], "completed")

    run()
