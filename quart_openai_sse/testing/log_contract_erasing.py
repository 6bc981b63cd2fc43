"""The contract of a stream log: what can be found once it is stored, and what is erased."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from quart_openai_sse.errors import StreamExpired, StreamNotFound
from quart_openai_sse.logs import StreamLog, Writer
from quart_openai_sse.logs.entries import End
from quart_openai_sse.testing.log_contract_base import (
    COMPLETED,
    ContractBase,
    Watched,
    about,
    check_expired,
    contract_test,
    create,
    drain,
    entry,
    numbered,
    raises,
    take,
    written,
)


class ErasingContract(ContractBase):
    """The tests of `Writer.stored`, `StreamLog.erase` and `StreamLog.forget`."""

    @contract_test
    async def test_a_stream_that_is_stored_is_found_in_every_process(self, here: StreamLog, there: StreamLog) -> None:
        """`stored` returns when it is found. With a *digest* it is from the beginning."""
        for key, digest in (("a", ""), ("b", "x")):
            writer = await here.create(key, about=about(key), digest=digest, retain=True)
            assert writer is not None
            if digest:
                assert await there.create(key, about=about(key), digest=digest, retain=True) is None
            else:
                await writer.stored()
            assert await there.tail(key) == ("", False)
            reader = await there.read(key)
            writer.append([entry("one")])
            assert await take(reader, 1) == [entry("one")]
            await writer.stored()
        assert (here is there) or (here.shared and there.shared)

    @contract_test
    async def test_an_erased_stream_has_expired_in_every_process(self, here: StreamLog, there: StreamLog) -> None:
        """Nobody can read it any more. It holds its key, as any stream that has expired."""
        for key in ("a", "b"):
            writer = await create(here, key, digest="x")
            writer.append([entry("one")])
            await writer.close(COMPLETED)
            for log in (here, there):  # which may have a copy from now on
                assert await drain(await log.read(key)) == (numbered("one"), COMPLETED)
        await there.erase("a")
        await there.erase("a")
        for log in (there, here):
            await check_expired(log, "a")
            assert len(await log.find("ann", ended_within=60)) == 1
            assert await drain(await log.read("b")) == (numbered("one"), COMPLETED)

    @contract_test
    async def test_only_a_stream_that_has_ended_is_erased(self, here: StreamLog, there: StreamLog) -> None:
        """Nothing happens to a running stream, and an unknown one is not found."""
        writer = await create(here, "a")
        writer.append([entry("one")])
        for log in (here, there):
            await log.erase("a")
            with raises(StreamNotFound):
                await log.erase("nowhere")
        writer.append([entry("two")])
        await writer.close(COMPLETED)
        assert await drain(await there.read("a")) == (numbered("one", "two"), COMPLETED)

    @contract_test
    async def test_the_readers_of_a_stream_that_is_erased_end(self, here: StreamLog, there: StreamLog) -> None:
        """A reader that has not had the whole stream by then gets no more of it, in any process."""
        writer = await create(here, "a")
        writer.append([entry("x" * 100_000)] * 10)
        await writer.close(COMPLETED)
        readers = [await log.read("a") for log in (here, there)]
        for reader in readers:
            await anext(aiter(reader))
        await here.erase("a")
        for reader in readers:
            with suppress(StreamExpired):
                assert [batch.end async for batch in reader if batch.end is not None] == []
            await reader.aclose()

    @contract_test
    async def test_all_streams_of_an_owner_are_forgotten(self, here: StreamLog, there: StreamLog) -> None:
        """Those that run are stopped first. The streams of others stay."""
        ended, of_bob = await create(here, "a"), await create(there, "b", known=about("b", owner="bob"))
        running = [await create(here, "c"), await create(there, "d")]
        for writer in (ended, of_bob, *running):
            writer.append([entry("one")])
        await ended.close(COMPLETED)
        for log, key in ((here, "d"), (there, "c")):
            await written(log, key, "1")
        producing = [asyncio.ensure_future(_until_stopped(writer)) for writer in running]
        await there.forget("ann")
        assert all(task.done() for task in producing)
        for log in (there, here):
            assert await log.find("ann", ended_within=60) == []
            for key in ("a", "c", "d"):
                with raises(StreamExpired):
                    await log.read(key)
        assert await here.find("bob") == [about("b", owner="bob")]
        await of_bob.close(COMPLETED)
        assert await drain(await here.read("b")) == (numbered("one"), COMPLETED)


async def _until_stopped(writer: Writer) -> None:
    """A producer that ends when it is stopped."""
    reason = await Watched(writer).stopped.get()
    await writer.close(End("stopped", reason))
