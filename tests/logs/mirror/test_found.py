"""Faults that a review of the log has found."""

from __future__ import annotations

import asyncio

import pytest

from quart_openai_sse.errors import LogUnavailable, StreamExpired
from quart_openai_sse.logs import End, Entry, LostStream
from quart_openai_sse.testing.log_contract_base import COMPLETED, Watched, about, entry
from tests.logs.mirror.processes import LEASE, Processes, begin, in_virtual_time, texts_of

LONG = 3 * LEASE


# Lost streams


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


# Writing


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


# Presence


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


# Unknown keys


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


# Mirrors


@in_virtual_time
async def test_a_busy_reader_whose_place_leaves_the_window_goes_on_in_the_store(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    writer = await begin(one, "a")
    reader = await two.read("a")
    async with asyncio.timeout(600):
        texts: list[int] = []
        for number in range(400):
            writer.append([Entry(bytes([number % 256]) * (50 << 10))])
            if number % 10 == 9:
                await asyncio.sleep(0)
            if number % 40 == 39:
                batch = await anext(reader)
                texts += [each.data[0] for each in batch.entries]
        await writer.close(COMPLETED)
        async for batch in reader:
            texts += [each.data[0] for each in batch.entries]
    assert texts == [number % 256 for number in range(400)]


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


# Erasing


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
    await two.erase("a")
    await asyncio.sleep(1)
    one.store.connect()
    await asyncio.sleep(1)
    with pytest.raises(StreamExpired):
        await one.read("a")


# Opening and closing


@in_virtual_time
async def test_a_reader_that_is_closed_after_its_log_leaves_nothing_running(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new()
    await begin(one, "a", "one")
    reader = await two.read("a")
    await two.aclose()
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
