"""The contract of a stream log, as tests that every `StreamLog` must pass."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from quart_openai_sse.errors import (
    ErrorValue,
    InvalidLastEventID,
    KeyReused,
    OpenAISSEError,
    StreamExpired,
    StreamNotFound,
    StreamStopped,
    UpstreamTruncated,
)
from quart_openai_sse.flow import Flow
from quart_openai_sse.logs import Reader, StreamLog, Writer
from quart_openai_sse.logs.entries import END_ID, About, Batch, End, Entry


class StreamLogContract:
    """The tests that every `StreamLog` must pass. Inherit from this class and define a fixture `log`.

    The fixture returns a new log for each test; a finished stream must stay readable for the duration of a test.
    """

    async def test_entries_are_read_with_dense_ids(self, log: StreamLog) -> None:
        """A reader gets the entries in order, numbered from 1, and then the end."""
        writer = await _create(log, "a")
        writer.append([_entry("one"), _entry("two")])
        writer.append([_entry("three")])
        await writer.close(_COMPLETED)
        assert await _drain(await log.read("a")) == ([(1, "one"), (2, "two"), (3, "three")], _COMPLETED)

    async def test_every_resume_point_gives_exactly_the_rest(self, log: StreamLog) -> None:
        """A reader that has entry n gets entry n+1 and all that follow."""
        writer = await _create(log, "a")
        writer.append([_entry(str(number)) for number in range(1, 8)])
        await writer.close(_COMPLETED)
        for after in range(1, 8):
            entries, end = await _drain(await log.read("a", after=str(after)))
            assert entries == [(number, str(number)) for number in range(after + 1, 8)]
            assert end == _COMPLETED

    async def test_a_reader_that_has_the_end_gets_nothing(self, log: StreamLog) -> None:
        """The end's id is a valid last event ID."""
        writer = await _create(log, "a")
        writer.append([_entry("one")])
        await writer.close(_COMPLETED)
        reader = await log.read("a", after=END_ID)
        assert reader.at_end
        assert await _drain(reader) == ([], None)

    async def test_a_reader_wakes_on_append_and_on_close(self, log: StreamLog) -> None:
        """A reader of a running stream waits for the next entry, and for the end."""
        writer = await _create(log, "a")
        reader = await log.read("a")
        reading = asyncio.ensure_future(anext(aiter(reader)))
        await asyncio.sleep(0)
        writer.append([_entry("one")])
        async with asyncio.timeout(5):
            assert [entry.data for entry in (await reading).entries] == [b"one"]
        draining = asyncio.ensure_future(_drain(reader))
        await asyncio.sleep(0)
        await writer.close(_COMPLETED)
        async with asyncio.timeout(5):
            assert await draining == ([], _COMPLETED)

    async def test_two_readers_get_the_same(self, log: StreamLog) -> None:
        """Two readers of one stream are independent of each other."""
        writer = await _create(log, "a")
        writer.append([_entry("one"), _entry("two")])
        late = await log.read("a", after="1")
        early = await log.read("a")
        writer.append([_entry("three")])
        await writer.close(_COMPLETED)
        assert await _drain(early) == ([(1, "one"), (2, "two"), (3, "three")], _COMPLETED)
        assert await _drain(late) == ([(2, "two"), (3, "three")], _COMPLETED)

    async def test_the_first_end_wins(self, log: StreamLog) -> None:
        """A second `close` has no effect."""
        writer = await _create(log, "a")
        await writer.close(End("stopped", "enough"))
        await writer.close(_COMPLETED)
        _, end = await _drain(await log.read("a"))
        assert end is not None
        assert (end.outcome, end.reason) == ("stopped", "enough")

    async def test_a_key_that_exists_is_attached_to(self, log: StreamLog) -> None:
        """With the same digest `create` returns `None`; with another digest it raises `KeyReused`."""
        await _create(log, "a", digest="x")
        assert await log.create("a", about=_ABOUT, digest="x", retain=True) is None
        with _raises(KeyReused):
            await log.create("a", about=_ABOUT, digest="y", retain=True)

    async def test_a_stream_that_failed_without_an_entry_does_not_hold_its_key(self, log: StreamLog) -> None:
        """A second request with its key starts a new stream."""
        writer = await _create(log, "a")
        await writer.close(_failed(UpstreamTruncated()))
        assert await log.create("a", about=_ABOUT, digest="other", retain=True) is not None

    async def test_an_unknown_stream_is_not_found(self, log: StreamLog) -> None:
        """`read` and `stop` raise `StreamNotFound` for an unknown key."""
        with _raises(StreamNotFound):
            await log.read("nowhere")
        with _raises(StreamNotFound):
            await log.stop("nowhere", "because")

    async def test_an_invalid_last_event_id_is_refused(self, log: StreamLog) -> None:
        """`read` raises `InvalidLastEventID` instead of replaying the whole stream."""
        writer = await _create(log, "a")
        writer.append([_entry("one")])
        for after in ("2", "-1", "0", "01", "1.0", "x", "１", "9" * 40, END_ID):  # noqa: RUF001
            with _raises(InvalidLastEventID):
                await log.read("a", after=after)

    async def test_a_stop_reaches_the_producer(self, log: StreamLog) -> None:
        """The producer gets the reason of the first stop, even if it watches later; a second stop has no effect."""
        writer = await _create(log, "a")
        told: asyncio.Queue[str] = asyncio.Queue()
        writer.watch(stopped=told.put_nowait, left=lambda: told.put_nowait("left"), lost=_nothing, linger=60)
        await log.stop("a", "first")
        await log.stop("a", "second")
        async with asyncio.timeout(5):
            assert await told.get() == "first"
        late: asyncio.Queue[str] = asyncio.Queue()
        writer.watch(stopped=late.put_nowait, left=lambda: late.put_nowait("left"), lost=_nothing, linger=60)
        async with asyncio.timeout(5):
            assert await late.get() == "first"
        assert told.empty()

    async def test_the_producer_is_told_when_the_last_reader_has_closed(self, log: StreamLog) -> None:
        """It is not told while there is a reader, if another comes within the linger, or after the stream's end."""
        writer = await _create(log, "a")
        first, second = await log.read("a"), await log.read("a")
        left = asyncio.Event()
        writer.watch(stopped=lambda _: None, left=left.set, lost=_nothing, linger=0)
        await first.aclose()
        await first.aclose()
        await _run_callbacks()
        assert not left.is_set()
        await second.aclose()
        third = await log.read("a")
        await _run_callbacks()
        assert not left.is_set()
        await third.aclose()
        async with asyncio.timeout(5):
            await left.wait()
        left.clear()
        await writer.close(_COMPLETED)
        await (await log.read("a")).aclose()
        await _run_callbacks()
        assert not left.is_set()

    async def test_the_producer_is_told_when_the_stream_never_had_a_reader(self, log: StreamLog) -> None:
        """The linger begins with the stream."""
        writer = await _create(log, "a")
        left = asyncio.Event()
        writer.watch(stopped=lambda _: None, left=left.set, lost=_nothing, linger=0)
        async with asyncio.timeout(5):
            await left.wait()

    async def test_opened_waits_for_output_or_raises_the_failure(self, log: StreamLog) -> None:
        """`opened` decides whether a failure can still be sent as an HTTP status."""
        writer = await _create(log, "a")
        await (await log.read("a")).opened(0)  # returns at the timeout, without output
        waiting, beating = await log.read("a", heartbeat=0.001), await log.read("a", heartbeat=0.001)
        opened = asyncio.ensure_future(waiting.opened(60))
        for _ in range(5):  # a heartbeat is not output
            assert not (await anext(aiter(beating))).entries
        assert not opened.done()
        opened.cancel()
        await waiting.aclose()
        await beating.aclose()
        writer.append([_entry("one")])
        await (await log.read("a")).opened(60)
        await writer.close(_failed(UpstreamTruncated()))
        await (await log.read("a")).opened(60)  # the stream had output, so its failure is sent as an event

        failed = await _create(log, "b")
        reader = await log.read("b")
        await failed.close(_failed(UpstreamTruncated()))
        with _raises(UpstreamTruncated):
            await reader.opened(60)

        stopped = await _create(log, "c")
        await stopped.close(End("stopped", "enough"))
        with _raises(StreamStopped):
            await (await log.read("c")).opened(60)

    async def test_silence_gives_an_empty_batch(self, log: StreamLog) -> None:
        """After *heartbeat* seconds without an entry a reader gets an empty batch, and can read on."""
        writer = await _create(log, "a")
        reader = await log.read("a", heartbeat=0.001)
        async with asyncio.timeout(5):
            assert not (await anext(aiter(reader))).entries
            writer.append([_entry("one")])
            while not (batch := await anext(aiter(reader))).entries:
                pass
        assert [entry.data for entry in batch.entries] == [b"one"]

    async def test_a_passing_stream_drops_the_entries_that_were_read(self, log: StreamLog) -> None:
        """It pauses its producer until they are read, and its beginning cannot be read again."""
        writer = await _create(log, "a", retain=False)
        reader = await log.read("a")
        assert writer.append([_entry("one")]) is Flow.MORE
        assert writer.append([Entry(b"x" * (1 << 20))]) is Flow.PAUSE
        room = asyncio.ensure_future(writer.room())
        await _run_callbacks()
        assert not room.done()
        assert len((await anext(aiter(reader))).entries) == 2
        async with asyncio.timeout(5):
            await room
        with _raises(StreamExpired):
            await log.read("a")

    async def test_a_passing_stream_is_read_from_its_beginning_only(self, log: StreamLog) -> None:
        """A second reader may begin there if the first one closed without reading anything."""
        writer = await _create(log, "a", retain=False)
        await (await log.read("a")).aclose()
        writer.append([_entry("one"), _entry("two")])
        with _raises(StreamExpired):
            await log.read("a", after="1")
        reader = await log.read("a")
        await writer.close(_COMPLETED)
        assert await _drain(reader) == ([(1, "one"), (2, "two")], _COMPLETED)


_COMPLETED = End("completed", finish_reasons={0: "stop"}, usage={"total_tokens": 3})
_ABOUT = About(id="0123456789abcdef0123456789abcdef", owner="ann", model="model", created=1.5)


def _failed(error: OpenAISSEError) -> End:
    return End("failed", error.code or "", ErrorValue.of(error))


def _nothing() -> None:
    pass


async def _create(log: StreamLog, key: str, *, digest: str = "", retain: bool = True) -> Writer:
    writer = await log.create(key, about=_ABOUT, digest=digest, retain=retain)
    assert writer is not None
    return writer


def _entry(text: str) -> Entry:
    return Entry(text.encode(), 0.5)


async def _drain(reader: Reader) -> tuple[list[tuple[int, str]], End | None]:
    """The remaining entries with their ids, and the end; closes the reader."""
    entries: list[tuple[int, str]] = []
    end = None
    batch: Batch
    async for batch in reader:
        entries += [(place, entry.data.decode()) for place, entry in enumerate(batch.entries, batch.first)]
        end = batch.end
    await reader.aclose()
    return entries, end


@contextmanager
def _raises(expected: type[OpenAISSEError]) -> Iterator[None]:
    """Like `pytest.raises`; the package does not depend on pytest."""
    try:
        yield
    except expected:
        return
    raise AssertionError(f"{expected.__name__} was not raised")


async def _run_callbacks() -> None:
    """Lets the event loop run the callbacks that are due."""
    for _ in range(5):
        await asyncio.sleep(0)
