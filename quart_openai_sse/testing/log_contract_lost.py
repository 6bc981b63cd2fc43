"""The contract of a stream log: the end is decided once, and what becomes of the streams of a lost process."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from unittest import SkipTest

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs import LostStream, StreamLog, Writer
from quart_openai_sse.testing.log_contract_base import (
    COMPLETED,
    ContractBase,
    Watched,
    about,
    check_lost,
    contract_test,
    create,
    drain,
    entry,
    numbered,
    until,
    written,
)


class LostContract(ContractBase):
    """The tests of `Writer.decide`, `Writer.keep` and `StreamLog.on_lost`."""

    @contract_test
    async def test_a_decided_end_is_not_the_end_yet(self, here: StreamLog, there: StreamLog) -> None:
        """`decide` returns `True`; readers wait until `close`."""
        writer = await create(here, "a")
        writer.append([entry("one")])
        assert await writer.decide(COMPLETED)
        for log in (here, there):
            assert not (await log.tail("a"))[1]
        await writer.close(COMPLETED)
        assert await drain(await there.read("a")) == (numbered("one"), COMPLETED)

    @contract_test
    async def test_a_process_that_was_taken_for_dead_decides_nothing(self, here: StreamLog, there: StreamLog) -> None:
        """`decide` returns `False`: the end's hooks run in another process."""
        writer = await create(here, "a")
        Watched(writer)
        writer.append([entry("one")])
        await self.lose(here)
        assert not await writer.decide(COMPLETED)
        await writer.close(COMPLETED)
        _, end = await drain(await there.read("a"))
        check_lost(end)

    @contract_test
    async def test_a_decided_end_is_the_end_of_a_lost_stream(self, here: StreamLog, there: StreamLog) -> None:
        """The answer was complete when its process died: readers get the end that was decided."""
        writer = await create(here, "a")
        Watched(writer)
        writer.append([entry("one")])
        assert await writer.decide(COMPLETED)
        await self.lose(here)
        assert await drain(await there.read("a")) == (numbered("one"), COMPLETED)

    @contract_test
    async def test_a_stream_that_is_lost_while_it_ends_has_one_end(self, here: StreamLog, there: StreamLog) -> None:
        """Whether the end or the loss is stored first: every process has the same one from then on."""
        writer = await create(here, "a")
        Watched(writer)
        writer.append([entry("one")])
        reader = await there.read("a")
        await asyncio.gather(self.lose(here), _close(writer))
        entries, end = await drain(reader)
        assert entries == numbered("one")
        assert end is not None
        if end != COMPLETED:
            check_lost(end)
        for log in (there, here):

            async def agrees(log: StreamLog = log) -> bool:
                return await drain(await log.read("a")) == (entries, end)

            await until(agrees)

    # What another process does for a lost one -------------------------------------------------------------------------

    @contract_test
    async def test_a_lost_stream_is_handed_to_one_living_process(self, here: StreamLog, there: StreamLog) -> None:
        """It gets the request, the end and the entries of the stream; readers get the end when it has returned."""
        if there is here:
            raise SkipTest("`other` is not defined: there is no other process")
        handed: asyncio.Queue[LostStream] = asyncio.Queue()
        returning = asyncio.Event()

        async def on_lost(lost: LostStream) -> None:
            handed.put_nowait(lost)
            await returning.wait()

        there.on_lost(on_lost)
        writer = await create(here, "a")
        Watched(writer)
        writer.keep(b"\xffrequest")
        writer.append([entry("one"), entry("two")])
        await written(there, "a", "2")
        await self.lose(here)
        lost = await handed.get()
        check_lost(lost.end)
        assert (lost.about, lost.request, lost.attempt) == (about(), b"\xffrequest", 2)
        assert [each async for batch in lost.batches for each in batch.entries] == [entry("one"), entry("two")]
        assert not (await there.tail("a"))[1]
        returning.set()
        entries, end = await drain(await there.read("a"))
        assert entries == numbered("one", "two")
        check_lost(end)
        assert handed.empty()

    @contract_test
    async def test_a_lost_stream_is_handed_over_with_the_end_that_was_decided(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """Its hooks may have been called with this end before, so that they are called with the same again."""
        if there is here:
            raise SkipTest("`other` is not defined: there is no other process")
        handed: list[LostStream] = []

        async def on_lost(lost: LostStream) -> None:
            handed.append(lost)

        there.on_lost(on_lost)
        writer = await create(here, "a")
        Watched(writer)
        writer.keep(b"request")
        writer.append([entry("one")])
        assert await writer.decide(COMPLETED)
        await self.lose(here)
        assert await drain(await there.read("a")) == (numbered("one"), COMPLETED)
        assert [(lost.end, lost.request) for lost in handed] == [(COMPLETED, b"request")]

    @contract_test
    async def test_every_running_stream_of_a_lost_process_is_handed_over(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """Also one whose request was not kept, and if the call raises. One that had ended is not."""
        if there is here:
            raise SkipTest("`other` is not defined: there is no other process")
        handed: dict[str, bytes] = {}

        async def on_lost(lost: LostStream) -> None:
            handed[lost.about.id] = lost.request
            raise RuntimeError("A hook has failed.")

        there.on_lost(on_lost)
        writers = [await create(here, key, known=about(key)) for key in "abc"]
        for writer in writers:
            Watched(writer)
            writer.append([entry("one")])
        writers[0].keep(b"request")
        writers[2].keep(b"request")
        await writers[2].close(COMPLETED)
        await self.lose(here)
        for key in "ab":
            entries, end = await drain(await there.read(key))
            assert entries == numbered("one")
            check_lost(end)
        assert await drain(await there.read("c")) == (numbered("one"), COMPLETED)
        assert handed == {about("a").id: b"request", about("b").id: b""}


async def _close(writer: Writer) -> None:
    with suppress(LogUnavailable):
        await writer.close(COMPLETED)
