"""The contract of a stream log: expiry, limits, an unreachable store, lost producers, opening and closing."""

from __future__ import annotations

import asyncio
from unittest import SkipTest

from quart_openai_sse.errors import (
    InvalidLastEventID,
    LogUnavailable,
    StreamTooLong,
)
from quart_openai_sse.flow import Flow
from quart_openai_sse.logs import StreamLog
from quart_openai_sse.logs.entries import Entry
from quart_openai_sse.testing.log_contract_base import (
    COMPLETED,
    ContractBase,
    Watched,
    about,
    check_expired,
    check_lost,
    contract_test,
    create,
    drain,
    entry,
    numbered,
    raises,
    take,
)


class FaultsContract(ContractBase):
    """The tests of what a log does when it is full, when time passes, and when something fails."""

    @contract_test
    async def test_an_expired_stream_cannot_be_read_and_holds_its_key(self, here: StreamLog, there: StreamLog) -> None:
        """`StreamExpired` (410) and not `StreamNotFound` (404): a repeated request must not start a second stream."""
        writer = await create(here, "a", digest="x")
        writer.append([entry("one")])
        await writer.close(COMPLETED)
        running = await create(here, "b")
        await self.expire(here)
        for log in (here, there):
            await check_expired(log, "a")
            assert await log.find("ann", ended_within=1e9) == [about()]
        running.append([entry("two")])
        assert await take(await there.read("b"), 1) == [entry("two")]

    @contract_test
    async def test_an_append_that_is_too_long_adds_nothing(self, here: StreamLog, there: StreamLog) -> None:
        """`append` raises `StreamTooLong`, and readers get none of its entries."""
        if self.max_bytes is None:
            raise SkipTest("`max_bytes` is not defined, which is more than a stream can hold")
        writer = await create(here, "a")
        reader = await there.read("a")
        writer.append([entry("one")])
        with raises(StreamTooLong):
            writer.append([entry("two"), Entry(b"x" * self.max_bytes), entry("three")])
        assert await here.tail("a") == ("1", False)
        assert writer.append([entry("four")]) is Flow.MORE
        await writer.close(COMPLETED)
        assert await drain(reader) == (numbered("one", "four"), COMPLETED)

    # The store cannot be reached --------------------------------------------------------------------------------------

    @contract_test
    async def test_an_unreachable_store_is_no_missing_stream(self, here: StreamLog, there: StreamLog) -> None:
        """Each method raises `LogUnavailable` (503), and never `StreamNotFound` (404), until the store is back."""
        writer, unread = await create(here, "a"), await create(here, "b")
        writer.append([entry("one")])
        reader = await there.read("a")
        assert await take(reader, 1) == [entry("one")]
        async with self.unreachable(here):
            # A log may know its own process's streams without the store.
            for new, log, key in (("d", here, "nowhere"), ("e", there, "nowhere" if there is here else "b")):
                assert not await log.ready()
                with raises(LogUnavailable):
                    await log.create("c", about=about(), digest="x", retain=True)
                with raises(LogUnavailable):
                    await create(log, new)
                with raises(LogUnavailable):
                    await log.read(key)
                with raises(LogUnavailable):
                    await log.stop(key, "because")
                with raises(LogUnavailable):
                    await log.tail(key)
                with raises(LogUnavailable):
                    await log.find("ann")
        for log in (here, there):
            assert await log.ready()
        writer.append([entry("two")])
        await writer.close(COMPLETED)
        assert await drain(await there.read("a")) == (numbered("one", "two"), COMPLETED)
        unread.append([entry("three")])
        await unread.close(COMPLETED)
        assert await drain(await there.read("b")) == (numbered("three"), COMPLETED)
        try:  # A reader may wait for the store, or end with an error; it does not lose anything.
            assert await drain(reader) == (numbered("two", first=2), COMPLETED)
        except LogUnavailable:
            await reader.aclose()

    @contract_test
    async def test_an_end_that_cannot_be_stored_at_once_is_stored_later(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """`close` raises `LogUnavailable`, and the log tries again. Otherwise readers elsewhere would wait for ever."""
        writer = await create(here, "a")
        writer.append([entry("one")])
        async with self.unreachable(here):
            with raises(LogUnavailable):
                await writer.close(COMPLETED)
        entries, end = await drain(await there.read("a"))
        assert entries == numbered("one")
        assert end is not None

    @contract_test
    async def test_a_log_that_could_not_be_opened_can_be_opened_later(self, here: StreamLog, there: StreamLog) -> None:
        """`open` raises `LogUnavailable` while the store cannot be reached."""
        await there.aclose()
        async with self.unreachable(here):
            with raises(LogUnavailable):
                await there.open()
            assert not await there.ready()
        await there.open()
        assert await there.ready()
        await create(there, "a")

    # Another process takes this one for dead --------------------------------------------------------------------------

    @contract_test
    async def test_the_streams_of_a_process_that_is_taken_for_dead_fail(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """Their readers get the end `producer_lost`, in every process."""
        writer = await create(here, "a", digest="x")
        Watched(writer)
        readers = [await here.read("a"), await there.read("a")]
        writer.append([entry("one")])
        for reader in readers:
            assert await take(reader, 1) == [entry("one")]
        await self.lose(here)
        for reader in (*readers, await there.read("a", after="1")):
            entries, end = await drain(reader)
            assert entries == []
            check_lost(end)
        assert await there.tail("a") == ("1", True)
        assert await there.find("ann") == []
        assert await there.create("a", about=about(), digest="x", retain=True) is None
        try:  # A client may have had entries of the dead process that never came to the store.
            entries, end = await drain(await there.read("a", after="7"))
        except InvalidLastEventID:
            return
        assert entries == []
        check_lost(end)

    @contract_test
    async def test_a_producer_that_was_taken_for_dead_is_told_and_fenced(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """No reader gets the entries that it appends from then on, and its `close` has no effect."""
        writer = await create(here, "a")
        watched = Watched(writer)
        writer.append([entry("one")])
        assert await take(await there.read("a"), 1) == [entry("one")]
        await self.lose(here)
        if there is not here:  # readers in the same process may get this, because they read its memory
            writer.append([entry("before it knows")])
        await watched.lost.wait()
        assert writer.append([entry("late")]) is Flow.ENOUGH
        await writer.close(COMPLETED)
        entries, end = await drain(await there.read("a"))
        assert entries == numbered("one")
        check_lost(end)
        assert (watched.stopped.empty(), watched.left.is_set()) == (True, False)

    @contract_test
    async def test_a_stream_that_has_ended_is_not_lost(self, here: StreamLog, there: StreamLog) -> None:
        """It keeps its end when its process is taken for dead afterwards."""
        writer = await create(here, "a")
        watched = Watched(writer)
        writer.append([entry("one")])
        await writer.close(COMPLETED)
        await self.lose(here)
        assert await drain(await there.read("a")) == (numbered("one"), COMPLETED)
        assert not watched.lost.is_set()

    @contract_test
    async def test_the_readers_of_a_dead_process_do_not_keep_a_stream(self, here: StreamLog, there: StreamLog) -> None:
        """The producer is told that there are no readers, as if the process had closed them."""
        if there is here:
            raise SkipTest("`other` is not defined, and a log of one process has no readers elsewhere")
        writer = await create(here, "a")
        await there.read("a")
        watched = Watched(writer, linger=0)
        await self.lose(there)
        await watched.left.wait()
        assert not watched.lost.is_set()

    # Open and close ---------------------------------------------------------------------------------------------------

    @contract_test
    async def test_open_and_aclose_may_be_called_again(self, here: StreamLog, there: StreamLog) -> None:
        """`open` may also be called by two tasks at the same time, and after `aclose`."""
        await there.aclose()
        await there.aclose()
        await asyncio.gather(there.open(), there.open())
        await there.open()
        assert await there.ready()
        writer = await create(there, "a")
        writer.append([entry("one")])
        await writer.close(COMPLETED)
        assert await drain(await here.read("a")) == (numbered("one"), COMPLETED)
        assert there.size >= 0

    @contract_test
    async def test_closing_a_log_ends_no_stream_of_another_process(self, here: StreamLog, there: StreamLog) -> None:
        """The producer goes on, and the log that was closed can be opened again to read the stream."""
        if there is here:
            raise SkipTest("`other` is not defined: there is no other process")
        writer = await create(here, "a")
        watched = Watched(writer)
        writer.append([entry("one")])
        await there.aclose()
        assert writer.append([entry("two")]) is Flow.MORE
        await there.open()
        reader = await there.read("a")
        assert await take(reader, 2) == [entry("one"), entry("two")]
        await writer.close(COMPLETED)
        assert await drain(reader) == ([], COMPLETED)
        assert not watched.lost.is_set()
