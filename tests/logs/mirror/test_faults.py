"""What the mirrored log does when its store or a process fails at a certain moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from quart_openai_sse.errors import StreamExpired
from quart_openai_sse.logs import LostStream
from quart_openai_sse.logs.mirror.log import MirrorLog
from quart_openai_sse.testing.log_contract_base import (
    COMPLETED,
    Watched,
    about,
    check_lost,
    create,
    drain,
    entry,
    numbered,
    raises,
    take,
    written,
)
from tests.logs.mirror.contract import LEASE, Clock, MirrorContract
from tests.logs.mirror.memory_store import SharedMemory
from tests.logs.mirror.virtual_time import run


class Site:
    """Several processes on one store in memory."""

    def __init__(self) -> None:
        self.contract = MirrorContract()
        self.memory = SharedMemory(clock=Clock())
        self.logs: list[MirrorLog] = []

    async def log(self) -> MirrorLog:
        """Another process."""
        log = self.contract.log_on(self.memory)
        self.logs.append(log)
        await log.open()
        return log


Scenario = Callable[[Site], Awaitable[None]]


def scenario(test: Scenario) -> Callable[[], None]:
    """Runs a test in virtual time, in which it may take a minute."""

    async def run_it() -> None:
        site = Site()
        try:
            async with asyncio.timeout(60):
                await test(site)
        finally:
            for log in site.logs:
                await log.aclose()

    def run_in_virtual_time() -> None:
        run(run_it())

    run_in_virtual_time.__name__, run_in_virtual_time.__doc__ = test.__name__, test.__doc__
    return run_in_virtual_time


@pytest.mark.parametrize("forgets", ["everything", "the stream", "its batches"])
def test_what_hooks_need_is_stored_again_after_the_store_has_forgotten_it(forgets: str) -> None:
    @scenario
    async def it(site: Site) -> None:
        here, there = await site.log(), await site.log()
        handed: list[LostStream] = []

        async def on_lost(lost: LostStream) -> None:
            handed.append(lost)

        there.on_lost(on_lost)
        writer = await create(here, "a")
        Watched(writer)
        writer.keep(b"request")
        writer.append([entry("one")])
        await written(there, "a", "1")
        if forgets == "everything":
            site.memory.flush()
        elif forgets == "the stream":
            site.memory.forget("a")
        else:
            site.memory.forget_batches("a")
        writer.append([entry("two")])
        await asyncio.sleep(LEASE)
        assert await writer.decide(COMPLETED)
        await written(there, "a", "2")
        await site.contract.lose(here)
        assert await drain(await there.read("a")) == (numbered("one", "two"), COMPLETED)
        assert [(lost.request, lost.end) for lost in handed] == [(b"request", COMPLETED)]

    it()


@scenario
async def test_a_decided_end_is_stored_again_after_the_store_has_forgotten_it(site: Site) -> None:
    here, there = await site.log(), await site.log()
    writer = await create(here, "a")
    Watched(writer)
    writer.append([entry("one")])
    assert await writer.decide(COMPLETED)
    site.memory.flush()
    await asyncio.sleep(LEASE)
    await written(there, "a", "1")
    await site.contract.lose(here)
    assert await drain(await there.read("a")) == (numbered("one"), COMPLETED)


@scenario
async def test_a_process_that_is_closed_while_it_ends_lost_streams_leaves_none_running(site: Site) -> None:
    here, there = await site.log(), await site.log()
    hooks_run = asyncio.Event()

    async def on_lost(lost: LostStream) -> None:
        hooks_run.set()
        await asyncio.Event().wait()

    there.on_lost(on_lost)
    writer = await create(here, "a")
    Watched(writer)
    writer.append([entry("one")])
    await written(there, "a", "1")
    here.store.freeze()
    await hooks_run.wait()
    await there.aclose()
    third = await site.log()
    entries, end = await drain(await third.read("a"))
    assert entries == numbered("one")
    check_lost(end)
    here.store.thaw()


@scenario
async def test_an_open_reader_does_not_keep_an_expired_stream_for_others(site: Site) -> None:
    here, there = await site.log(), await site.log()
    writer = await create(here, "a")
    writer.append([entry("one")])
    await writer.close(COMPLETED)
    reader = await there.read("a")
    await site.contract.expire(here)
    with raises(StreamExpired):
        await there.read("a")
    await reader.aclose()


@scenario
async def test_a_batch_that_was_missed_is_loaded_when_the_next_one_comes(site: Site) -> None:
    here, there = await site.log(), await site.log()
    writer = await create(here, "a")
    reader = await there.read("a")
    writer.append([entry("one")])
    assert await take(reader, 1) == [entry("one")]
    there.store.miss(1)
    for text in ("two", "three"):
        writer.append([entry(text)])
        await written(there, "a", "2" if text == "two" else "3")
    assert await take(reader, 2) == [entry("two"), entry("three")]
    await reader.aclose()


@scenario
async def test_an_end_waits_for_the_batch_before_it_that_was_missed(site: Site) -> None:
    here, there = await site.log(), await site.log()
    writer = await create(here, "a")
    reader = await there.read("a")
    there.store.miss(1)
    writer.append([entry("one")])
    await written(there, "a", "1")
    await writer.close(COMPLETED)
    assert await drain(reader) == (numbered("one"), COMPLETED)


@scenario
async def test_a_reader_whose_coming_was_not_heard_keeps_the_stream(site: Site) -> None:
    here, there = await site.log(), await site.log()
    writer = await create(here, "a")
    await written(there, "a", "")
    here.store.miss(1)
    reader = await there.read("a")
    watched = Watched(writer, linger=1)
    await asyncio.sleep(5)
    assert not watched.left.is_set()
    await reader.aclose()
    await watched.left.wait()


@scenario
async def test_a_stop_that_was_not_heard_is_learned_with_the_next_write(site: Site) -> None:
    here, there = await site.log(), await site.log()
    writer = await create(here, "a")
    watched = Watched(writer)
    here.store.miss(1)
    await there.stop("a", "because")
    writer.append([entry("one")])
    assert await watched.stopped.get() == "because"


@scenario
async def test_one_of_several_processes_ends_a_lost_stream(site: Site) -> None:
    here, there, third = await site.log(), await site.log(), await site.log()
    handed: list[LostStream] = []

    async def on_lost(lost: LostStream) -> None:
        handed.append(lost)

    there.on_lost(on_lost)
    third.on_lost(on_lost)
    for key in "abcd":
        writer = await create(here, key, known=about(key))
        Watched(writer)
        writer.append([entry("one")])
        await written(there, key, "1")
    await site.contract.lose(here)
    for key in "abcd":
        check_lost((await drain(await there.read(key)))[1])
    await asyncio.sleep(2 * LEASE)
    assert sorted(lost.about.id for lost in handed) == [about(key).id for key in "abcd"]
    assert {lost.attempt for lost in handed} == {2}


@scenario
async def test_a_process_that_renews_its_lease_a_little_late_is_not_dead(site: Site) -> None:
    here, there = await site.log(), await site.log()
    writer = await create(here, "a")
    watched = Watched(writer)
    for _ in range(5):
        await asyncio.sleep(LEASE)
        here.store.freeze()
        site.memory.lapse(here.process)
        await asyncio.sleep(LEASE * 0.45)  # in which the other process looks once or twice
        here.store.thaw()
    writer.append([entry("one")])
    await writer.close(COMPLETED)
    assert await drain(await there.read("a")) == (numbered("one"), COMPLETED)
    assert not watched.lost.is_set()


@scenario
async def test_a_silent_producer_is_told_that_it_was_taken_for_dead(site: Site) -> None:
    here, _ = await site.log(), await site.log()
    watched = Watched(await create(here, "a"))
    await site.contract.lose(here)
    await watched.lost.wait()


@scenario
async def test_a_stream_that_is_not_read_elsewhere_is_stored_soon(site: Site) -> None:
    here, there = await site.log(), await site.log()
    writer = await create(here, "a")
    for place in range(1, 4):
        writer.append([entry(str(place))])
        began = asyncio.get_running_loop().time()
        await written(there, "a", str(place))
        assert asyncio.get_running_loop().time() - began < 0.3, "virtual time, so it does not depend on the machine"


@scenario
async def test_a_stream_that_the_store_has_forgotten_is_stored_again_with_the_next_write(site: Site) -> None:
    here, _ = await site.log(), await site.log()
    writer = await create(here, "a")
    writer.append([entry("one")])
    await asyncio.sleep(1)
    site.memory.forget("a")
    writer.append([entry("two")])
    await asyncio.sleep(1)
    assert site.memory.streams["a"].state.count == 2


@scenario
async def test_a_place_ahead_of_the_store_is_asked_for(site: Site) -> None:
    """Also if the writer's process has not heard that there is a reader."""
    here, there = await site.log(), await site.log()
    writer = await create(here, "a")
    writer.append([entry("one")])
    await written(there, "a", "1")
    here.store.miss(1)
    writer.append([entry("two")])
    reader = await there.read("a", after="2")
    await writer.close(COMPLETED)
    assert await drain(reader) == ([], COMPLETED)


@scenario
async def test_a_reader_that_pages_gets_no_entry_twice(site: Site) -> None:
    """The store has an entry that the mirror has missed, and then gives to all who wait."""
    here, there = await site.log(), await site.log()
    writer = await create(here, "a")
    writer.append([entry("one"), entry("two")])
    await written(there, "a", "2")
    early = await there.read("a", after="2")
    there.store.miss(1)
    writer.append([entry("three")])
    await written(there, "a", "3")
    late = await there.read("a")
    draining = asyncio.ensure_future(drain(late))
    await asyncio.sleep(1)
    writer.append([entry("four")])
    await writer.close(COMPLETED)
    assert await draining == (numbered("one", "two", "three", "four"), COMPLETED)
    assert await drain(early) == (numbered("three", "four", first=3), COMPLETED)
