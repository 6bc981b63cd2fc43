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
    check_lost,
    create,
    drain,
    entry,
    numbered,
    raises,
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
