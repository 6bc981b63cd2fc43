"""The streams of processes that have died."""

from __future__ import annotations

import asyncio

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs import LostStream
from quart_openai_sse.testing.log_contract_base import COMPLETED, Watched, about, entry
from tests.logs.mirror.processes import LEASE, Processes, begin, in_virtual_time, texts_of

LONG = 3 * LEASE


@in_virtual_time
async def test_hooks_of_lost_streams_do_not_stop_the_renewing_of_the_lease(processes: Processes) -> None:
    one, two, three = [await processes.new() for _ in range(3)]
    await begin(one, "lost", "one")
    called: list[tuple[str, int]] = []
    for log in (two, three):
        await begin(log, f"of {log.process}", "one")

        async def hooks(stream: LostStream) -> None:
            called.append((stream.about.id, stream.attempt))
            await asyncio.sleep(LONG)

        log.on_lost(hooks)
    one.store.freeze()
    await asyncio.sleep(3 * LONG)
    assert called == [(about().id, 2)]


@in_virtual_time
async def test_a_claim_whose_answer_is_lost_is_made_again(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    await begin(one, "a", "one")
    reader = await two.read("a")
    claim, failed = two.store.claim, []

    async def unanswered(*args: str) -> object:
        state = await claim(*args)
        if not failed:
            failed.append(True)
            raise LogUnavailable("The answer was lost.")
        return state

    two.store.claim = unanswered
    one.store.freeze()
    async with asyncio.timeout(10 * LEASE):
        assert await texts_of(reader) == (["one"], "producer_lost")


@in_virtual_time
async def test_a_process_that_closes_leaves_the_streams_it_has_claimed_to_others(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    await begin(one, "a", "one")
    busy = asyncio.Event()

    async def hooks(stream: LostStream) -> None:
        busy.set()
        await asyncio.sleep(LONG)

    two.on_lost(hooks)
    one.store.freeze()
    await busy.wait()
    three = await processes.new()
    reader = await three.read("a")
    await two.aclose()
    async with asyncio.timeout(20 * LEASE):
        assert await texts_of(reader) == (["one"], "producer_lost")


@in_virtual_time
async def test_hooks_that_could_not_read_the_stream_are_called_again(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    await begin(one, "a", "one")
    calls: list[int] = []

    async def hooks(stream: LostStream) -> None:
        calls.append(stream.attempt)
        if len(calls) == 1:
            raise LogUnavailable("The entries could not be read.")

    two.on_lost(hooks)
    reader = await two.read("a")
    one.store.freeze()
    async with asyncio.timeout(10 * LEASE):
        assert await texts_of(reader) == (["one"], "producer_lost")
    assert len(calls) == 2


@in_virtual_time
async def test_a_fenced_process_reads_what_the_others_read(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    writer = await begin(one, "a", "one")
    assert await writer.decide(COMPLETED)
    watched = Watched(writer)
    one.store.freeze()
    assert await texts_of(await two.read("a")) == (["one"], "completed")
    one.store.thaw()
    writer.append([entry("two")])
    await watched.lost.wait()
    await asyncio.sleep(1)
    assert await texts_of(await one.read("a")) == (["one"], "completed")
