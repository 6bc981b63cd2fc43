"""The contract of a stream log: what readers get, and when."""

from __future__ import annotations

import asyncio

from quart_openai_sse.errors import (
    ErrorValue,
    InvalidLastEventID,
    OpenAISSEError,
    StreamExpired,
    StreamStopped,
    UpstreamRefused,
    UpstreamTruncated,
)
from quart_openai_sse.flow import Flow
from quart_openai_sse.logs import Reader, StreamLog
from quart_openai_sse.logs.entries import END_ID, End, Entry
from quart_openai_sse.testing.log_contract_base import (
    COMPLETED,
    ENTRIES,
    ContractBase,
    contract_test,
    create,
    drain,
    entry,
    failed,
    linger_passes,
    numbered,
    raises,
    take,
    tasks_wait,
    written,
)

_BATCH = 512 << 10  # bytes that a batch may have, unless it is a single entry


class ReadingContract(ContractBase):
    """The tests of `Reader`, and of how the writer's methods affect readers."""

    @contract_test
    async def test_entries_are_read_as_they_were_written(self, here: StreamLog, there: StreamLog) -> None:
        """The data, any bytes, the time, the kind and the name are unchanged; ids are dense from 1; the end follows."""
        writer = await create(here, "a")
        for each in ENTRIES:
            writer.append([each])
        writer.append(ENTRIES)
        await writer.close(COMPLETED)
        twice = [(str(place), each) for place, each in enumerate(ENTRIES * 2, 1)]
        assert await drain(await there.read("a")) == (twice, COMPLETED)

    @contract_test
    async def test_the_end_is_read_as_it_was_written(self, here: StreamLog, there: StreamLog) -> None:
        """The finish reasons keep their numbers, and the error keeps its class and all of its values."""
        error = UpstreamRefused("Überlastet.", status=429, retry_after=7.5, param="model")
        ends = [
            End("completed", finish_reasons={0: "stop", 1: "length"}, usage={"total_tokens": 3, "details": {"a": [1]}}),
            End("completed"),
            End("stopped", "client_left", finish_reasons={}, usage={"total_tokens": 1}),
            failed(error),
            failed(UpstreamTruncated()),
        ]
        for number, end in enumerate(ends):
            writer = await create(here, str(number))
            writer.append([entry("one")])
            await writer.close(end)
            assert await drain(await there.read(str(number))) == (numbered("one"), end)
        raised = await _error(there, "3")
        assert (type(raised), ErrorValue.of(raised)) == (UpstreamRefused, ErrorValue.of(error))

    @contract_test
    async def test_every_resume_point_gives_exactly_the_rest(self, here: StreamLog, there: StreamLog) -> None:
        """`read` after the id of any entry returns the entries that follow it."""
        writer = await create(here, "a")
        writer.append([entry(str(number)) for number in range(1, 4)])
        writer.append([entry(str(number)) for number in range(4, 8)])
        await writer.close(COMPLETED)
        entries, _ = await drain(await there.read("a"))
        assert entries == numbered(*"1234567")
        for number, (after, _) in enumerate(entries, 1):
            assert await drain(await there.read("a", after=after)) == (entries[number:], COMPLETED)

    @contract_test
    async def test_a_reader_that_has_the_end_gets_nothing(self, here: StreamLog, there: StreamLog) -> None:
        """The end's id is a valid last event ID."""
        writer = await create(here, "a")
        writer.append([entry("one")])
        await writer.close(COMPLETED)
        reader = await there.read("a", after=END_ID)
        assert reader.at_end
        assert await drain(reader) == ([], None)

    @contract_test
    async def test_an_invalid_last_event_id_is_refused(self, here: StreamLog, there: StreamLog) -> None:
        """`read` raises `InvalidLastEventID`, also for a place that the stream has not reached."""
        writer = await create(here, "a")
        writer.append([entry("one")])
        for after in ("2", "-1", "0", "01", "1.0", "2.1", "x", "１", "9" * 40, END_ID):  # noqa: RUF001
            with raises(InvalidLastEventID):
                await there.read("a", after=after)

    @contract_test
    async def test_a_reader_waits_for_entries_and_for_the_end(self, here: StreamLog, there: StreamLog) -> None:
        """A reader of a running stream gets each entry soon, and then the end."""
        writer = await create(here, "a")
        reader = await there.read("a")
        for text in ("one", "two"):
            reading = asyncio.ensure_future(take(reader, 1))
            await tasks_wait(there)
            assert not reading.done()
            writer.append([entry(text)])
            assert await reading == [entry(text)]
        draining = asyncio.ensure_future(drain(reader))
        await tasks_wait(there)
        assert not draining.done()
        await writer.close(COMPLETED)
        assert await draining == ([], COMPLETED)

    @contract_test
    async def test_two_readers_get_the_same(self, here: StreamLog, there: StreamLog) -> None:
        """The readers of one stream are independent of each other, wherever they are."""
        writer = await create(here, "a")
        writer.append([entry("one"), entry("two")])
        early, late, mine = await there.read("a"), await there.read("a", after="1"), await here.read("a")
        writer.append([entry("three")])
        await writer.close(COMPLETED)
        everything = numbered("one", "two", "three")
        assert await drain(early) == (everything, COMPLETED)
        assert await drain(late) == (everything[1:], COMPLETED)
        assert await drain(mine) == (everything, COMPLETED)

    @contract_test
    async def test_reading_while_entries_arrive_loses_and_repeats_nothing(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """A reader that began in the middle gets every entry once, and in order."""
        writer = await create(here, "a")
        texts = [str(number) for number in range(200)]
        writer.append([entry(text) for text in texts[:50]])
        draining = asyncio.ensure_future(_drain_in_steps(there, "a"))
        for text in texts[50:]:
            writer.append([entry(text)])
            if int(text) % 10 == 0:
                await there.tail("a")
        await writer.close(COMPLETED)
        assert await draining == (numbered(*texts), COMPLETED)

    @contract_test
    async def test_a_reader_far_behind_gets_bounded_batches(self, here: StreamLog, there: StreamLog) -> None:
        """A batch has about 256 KiB at most, so that a reader never holds a whole stream in memory."""
        writer = await create(here, "a")
        writer.append([entry("x" * 100_000)] * 10)
        writer.append([entry("x" * 100_000)] * 10)
        await writer.close(COMPLETED)
        reader = await there.read("a")
        sizes = [[len(each.data) for each in batch.entries] async for batch in reader]
        await reader.aclose()
        assert sum(map(len, sizes)) == 20
        assert max(sum(size) for size in sizes if len(size) > 1) <= _BATCH

    @contract_test
    async def test_a_reader_far_behind_catches_up_with_a_running_stream(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """It gets every entry once while it catches up, also those that are added meanwhile, and then waits."""
        writer = await create(here, "a")
        entries = [entry(f"{place} {'x' * 40_000}") for place in range(1, 51)]
        writer.append(entries[:20])
        reader = await there.read("a", after="3")
        caught_up = await take(reader, 1)
        for each in entries[20:]:
            writer.append([each])
        caught_up += await take(reader, len(entries) - 3 - len(caught_up))
        assert caught_up == entries[3:]
        draining = asyncio.ensure_future(drain(reader))
        await tasks_wait(there)
        assert not draining.done()
        await writer.close(COMPLETED)
        assert await draining == ([], COMPLETED)

    @contract_test
    async def test_a_place_that_a_reader_has_reached_is_valid_in_every_process(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """A client that reconnects to another process may have had entries that are not stored yet."""
        for key in "abc":
            writer = await create(here, key)
            mine = await here.read(key)
            writer.append([entry("one")])
            await written(there, key, "1")
            for place, text in ((2, "two"), (3, "three")):
                writer.append([entry(text)])
                await take(mine, 2 if place == 2 else 1)
                reader = await there.read(key, after=str(place))
                with raises(InvalidLastEventID):
                    await there.read(key, after=str(place + 1))
                await reader.aclose()
            reader = await there.read(key, after="2")
            await writer.close(COMPLETED)
            assert await drain(reader) == (numbered("three", first=3), COMPLETED)

    @contract_test
    async def test_silence_gives_an_empty_batch(self, here: StreamLog, there: StreamLog) -> None:
        """After *heartbeat* seconds without an entry a reader gets an empty batch, and can read on."""
        writer = await create(here, "a")
        reader = await there.read("a", heartbeat=0.001)
        batch = await anext(aiter(reader))
        assert (batch.first, len(batch.entries), batch.end) == (1, 0, None)
        writer.append([entry("one")])
        assert await take(reader, 1) == [entry("one")]
        assert (await anext(aiter(reader))).first == 2
        await reader.aclose()

    @contract_test
    async def test_closing_a_reader_ends_its_waiting(self, here: StreamLog, there: StreamLog) -> None:
        """The current iteration and later ones end without the stream's end, and `opened` returns."""
        await create(here, "a")
        iterated, opened = await there.read("a"), await there.read("a")
        iterating = asyncio.ensure_future(_batches(iterated))
        opening = asyncio.ensure_future(opened.opened(60))
        await tasks_wait(there)
        for reader in (iterated, opened):
            await reader.aclose()
            await reader.aclose()
        assert await iterating == 0
        await opening
        assert await _batches(opened) == 0
        await opened.opened(60)

    @contract_test
    async def test_opened_waits_for_output(self, here: StreamLog, there: StreamLog) -> None:
        """`opened` returns at the first output, which a heartbeat is not, or after its timeout."""
        writer = await create(here, "a")
        await (await there.read("a")).opened(0)
        waiting, beating = await there.read("a", heartbeat=0.001), await there.read("a", heartbeat=0.001)
        opening = asyncio.ensure_future(waiting.opened(60))
        for _ in range(3):
            assert not (await anext(aiter(beating))).entries
        assert not opening.done()
        writer.append([entry("one")])
        await opening
        await (await there.read("a")).opened(60)
        await writer.close(failed(UpstreamTruncated()))
        await (await there.read("a")).opened(60)  # the stream had output, so its failure is sent as an event
        assert await drain(waiting) == (numbered("one"), failed(UpstreamTruncated()))

    @contract_test
    async def test_opened_raises_the_failure_of_a_stream_without_output(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """It raises the error or `StreamStopped`, so that the response can have its HTTP status."""
        for key, end, error in (
            ("a", failed(UpstreamTruncated()), UpstreamTruncated),
            ("b", End("stopped", "enough"), StreamStopped),
        ):
            writer = await create(here, key)
            opening = asyncio.ensure_future((await there.read(key)).opened(60))
            await tasks_wait(there)
            await writer.close(end)
            with raises(error):
                await opening
            with raises(error):
                await (await there.read(key)).opened(60)

    @contract_test
    async def test_nothing_comes_after_the_first_end(self, here: StreamLog, there: StreamLog) -> None:
        """A second `close` has no effect, and `append` returns `ENOUGH`."""
        writer = await create(here, "a")
        assert writer.append([entry("one")]) is Flow.MORE
        await writer.room()  # a kept stream never lacks room
        await asyncio.gather(writer.close(End("stopped", "enough")), writer.close(COMPLETED))
        assert writer.append([entry("two")]) is Flow.ENOUGH
        await writer.close(COMPLETED)
        assert await drain(await there.read("a")) == (numbered("one"), End("stopped", "enough"))

    @contract_test
    async def test_a_passing_stream_drops_the_entries_that_were_read(self, here: StreamLog, there: StreamLog) -> None:
        """The producer is paused until the entries are read, and the beginning cannot be read again."""
        writer = await create(here, "a", retain=False)
        reader = await here.read("a")
        assert writer.append([entry("one")]) is Flow.MORE
        assert writer.append([Entry(b"x" * (1 << 20))]) is Flow.PAUSE
        room = asyncio.ensure_future(writer.room())
        await linger_passes(here)
        assert not room.done()
        await take(reader, 2)
        await room
        with raises(StreamExpired):
            await here.read("a")
        await reader.aclose()

    @contract_test
    async def test_a_passing_stream_is_read_from_its_beginning_only(self, here: StreamLog, there: StreamLog) -> None:
        """A second reader may begin there only if the first one closed without reading anything."""
        writer = await create(here, "a", retain=False)
        await (await here.read("a")).aclose()
        writer.append([entry("one"), entry("two")])
        with raises(StreamExpired):
            await here.read("a", after="1")
        reader = await here.read("a")
        await writer.close(COMPLETED)
        assert await drain(reader) == (numbered("one", "two"), COMPLETED)


async def _error(log: StreamLog, key: str) -> OpenAISSEError:
    """A new exception of a failed stream's error."""
    _, end = await drain(await log.read(key))
    assert end is not None
    assert end.error is not None
    return end.error.exception()


async def _drain_in_steps(log: StreamLog, key: str) -> tuple[list[tuple[str, Entry]], End | None]:
    """Like `drain`, but with a new reader after each batch, for as long as the stream runs."""
    entries: list[tuple[str, Entry]] = []
    while not (await log.tail(key))[1]:
        reader = await log.read(key, after=entries[-1][0] if entries else "", heartbeat=0.001)
        batch = await anext(aiter(reader))
        entries += [(batch.id(place), each) for place, each in enumerate(batch.entries, batch.first)]
        await reader.aclose()
        if batch.end is not None:
            return entries, batch.end
    rest, end = await drain(await log.read(key, after=entries[-1][0] if entries else ""))
    return entries + rest, end


async def _batches(reader: Reader) -> int:
    """The number of batches until the iteration ends."""
    return len([batch async for batch in reader])
