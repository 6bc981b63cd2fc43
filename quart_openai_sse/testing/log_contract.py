"""What every stream log must do, as a suite of tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from quart_openai_sse.errors import (
    InvalidLastEventID,
    KeyReused,
    OpenAISSEError,
    StreamExpired,
    StreamNotFound,
    StreamStopped,
    UpstreamTruncated,
)
from quart_openai_sse.logs import Reader, StreamLog, Writer
from quart_openai_sse.logs.entries import END_ID, Batch, End, Entry


class StreamLogContract:
    """The tests that every `StreamLog` passes. Inherit from it, and give a fixture `log`.

    Its streams are retained for a moment only if the fixture says so; nothing here waits for an expiry.
    """

    async def test_what_is_appended_is_read_with_dense_ids(self, log: StreamLog) -> None:
        """A reader gets the entries in order, numbered from 1, and the end with the last of them."""
        writer = await _create(log, "a")
        writer.append([_entry("one"), _entry("two")])
        writer.append([_entry("three")])
        await writer.close(_COMPLETED)
        assert await _drain(await log.read("a")) == ([(1, "one"), (2, "two"), (3, "three")], _COMPLETED)

    async def test_every_resume_point_gives_exactly_the_rest(self, log: StreamLog) -> None:
        """Behind entry n come n+1 and all that follow."""
        writer = await _create(log, "a")
        writer.append([_entry(str(number)) for number in range(1, 8)])
        await writer.close(_COMPLETED)
        for after in range(1, 8):
            entries, end = await _drain(await log.read("a", after=str(after)))
            assert entries == [(number, str(number)) for number in range(after + 1, 8)]
            assert end == _COMPLETED

    async def test_a_reader_who_has_the_end_gets_nothing(self, log: StreamLog) -> None:
        """The end's id is a place like any other."""
        writer = await _create(log, "a")
        writer.append([_entry("one")])
        await writer.close(_COMPLETED)
        reader = await log.read("a", after=END_ID)
        assert reader.at_end
        assert await _drain(reader) == ([], None)

    async def test_a_reader_wakes_on_append_and_on_close(self, log: StreamLog) -> None:
        """Live is reading from the beginning."""
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
        """Each at its own place."""
        writer = await _create(log, "a")
        writer.append([_entry("one"), _entry("two")])
        late = await log.read("a", after="1")
        early = await log.read("a")
        writer.append([_entry("three")])
        await writer.close(_COMPLETED)
        assert await _drain(early) == ([(1, "one"), (2, "two"), (3, "three")], _COMPLETED)
        assert await _drain(late) == ([(2, "two"), (3, "three")], _COMPLETED)

    async def test_the_first_end_wins(self, log: StreamLog) -> None:
        """A stream ends once."""
        writer = await _create(log, "a")
        await writer.close(End("stopped", "enough"))
        await writer.close(_COMPLETED)
        _, end = await _drain(await log.read("a"))
        assert end is not None
        assert (end.outcome, end.reason) == ("stopped", "enough")

    async def test_a_key_that_exists_is_attached_to(self, log: StreamLog) -> None:
        """The same digest attaches, another one is refused."""
        await _create(log, "a", digest="x")
        assert await log.create("a", digest="x", retain=True) is None
        with _raises(KeyReused):
            await log.create("a", digest="y", retain=True)

    async def test_a_stream_that_failed_without_an_entry_does_not_hold_its_key(self, log: StreamLog) -> None:
        """Whoever asks again starts anew."""
        writer = await _create(log, "a")
        await writer.close(End("failed", error=UpstreamTruncated()))
        assert await log.create("a", digest="other", retain=True) is not None

    async def test_an_unknown_stream_is_not_found(self, log: StreamLog) -> None:
        """Neither to read nor to stop."""
        with _raises(StreamNotFound):
            await log.read("nowhere")
        with _raises(StreamNotFound):
            await log.stop("nowhere", "because")

    async def test_a_last_event_id_that_is_no_place_is_refused(self, log: StreamLog) -> None:
        """Never a silent full replay."""
        writer = await _create(log, "a")
        writer.append([_entry("one")])
        for after in ("2", "-1", "0", "01", "1.0", "x", "１", "9" * 40, END_ID):  # noqa: RUF001
            with _raises(InvalidLastEventID):
                await log.read("a", after=after)

    async def test_a_stop_reaches_the_producer(self, log: StreamLog) -> None:
        """With its reason; a second one changes nothing."""
        writer = await _create(log, "a")
        told: asyncio.Queue[str] = asyncio.Queue()
        writer.watch(stopped=told.put_nowait, left=lambda: told.put_nowait("left"), linger=60)
        await log.stop("a", "first")
        await log.stop("a", "second")
        async with asyncio.timeout(5):
            assert await told.get() == "first"
        late: asyncio.Queue[str] = asyncio.Queue()
        writer.watch(stopped=late.put_nowait, left=lambda: late.put_nowait("left"), linger=60)
        async with asyncio.timeout(5):
            assert await late.get() == "first"
        assert told.empty()

    async def test_the_producer_is_told_that_the_last_reader_has_left(self, log: StreamLog) -> None:
        """Not while there is one; nor if one comes back before the linger is over; nor when the stream has ended."""
        writer = await _create(log, "a")
        one, two = await log.read("a"), await log.read("a")
        left = asyncio.Event()
        writer.watch(stopped=lambda _: None, left=left.set, linger=0)
        await one.aclose()
        await one.aclose()
        await _turns()
        assert not left.is_set()
        await two.aclose()
        back = await log.read("a")
        await _turns()
        assert not left.is_set()
        await back.aclose()
        async with asyncio.timeout(5):
            await left.wait()
        left.clear()
        await writer.close(_COMPLETED)
        await (await log.read("a")).aclose()
        await _turns()
        assert not left.is_set()

    async def test_the_producer_is_told_that_nobody_ever_read(self, log: StreamLog) -> None:
        """The linger runs from the beginning."""
        writer = await _create(log, "a")
        left = asyncio.Event()
        writer.watch(stopped=lambda _: None, left=left.set, linger=0)
        async with asyncio.timeout(5):
            await left.wait()

    async def test_opened_waits_for_output_or_raises_the_failure(self, log: StreamLog) -> None:
        """It decides whether a refusal can still be a status."""
        writer = await _create(log, "a")
        await (await log.read("a")).opened(0)  # nothing yet: time is up
        waiting, beating = await log.read("a", heartbeat=0.001), await log.read("a", heartbeat=0.001)
        opened = asyncio.ensure_future(waiting.opened(60))
        for _ in range(5):  # heartbeats, none of which is output
            assert not (await anext(aiter(beating))).entries
        assert not opened.done()
        opened.cancel()
        await waiting.aclose()
        await beating.aclose()
        writer.append([_entry("one")])
        await (await log.read("a")).opened(60)
        await writer.close(End("failed", error=UpstreamTruncated()))
        await (await log.read("a")).opened(60)  # there was output: the failure is an event

        failed = await _create(log, "b")
        reader = await log.read("b")
        await failed.close(End("failed", error=UpstreamTruncated()))
        with _raises(UpstreamTruncated):
            await reader.opened(60)

        stopped = await _create(log, "c")
        await stopped.close(End("stopped", "enough"))
        with _raises(StreamStopped):
            await (await log.read("c")).opened(60)

    async def test_silence_gives_an_empty_batch(self, log: StreamLog) -> None:
        """For the heartbeat, and the reader goes on."""
        writer = await _create(log, "a")
        reader = await log.read("a", heartbeat=0.001)
        async with asyncio.timeout(5):
            assert not (await anext(aiter(reader))).entries
            writer.append([_entry("one")])
            while not (batch := await anext(aiter(reader))).entries:
                pass
        assert [entry.data for entry in batch.entries] == [b"one"]

    async def test_what_is_not_retained_is_given_up_when_read(self, log: StreamLog) -> None:
        """Its upstream is paused meanwhile, and its beginning cannot be read again."""
        writer = await _create(log, "a", retain=False)
        reader = await log.read("a")
        assert writer.append([_entry("one")])
        assert not writer.append([Entry(b"x" * (1 << 20))])
        room = asyncio.ensure_future(writer.room())
        await _turns()
        assert not room.done()
        assert len((await anext(aiter(reader))).entries) == 2
        async with asyncio.timeout(5):
            await room
        with _raises(StreamExpired):
            await log.read("a")

    async def test_what_is_not_retained_is_read_from_its_beginning_only(self, log: StreamLog) -> None:
        """Also where its first reader has left without taking anything."""
        writer = await _create(log, "a", retain=False)
        await (await log.read("a")).aclose()
        writer.append([_entry("one"), _entry("two")])
        with _raises(StreamExpired):
            await log.read("a", after="1")
        reader = await log.read("a")
        await writer.close(_COMPLETED)
        assert await _drain(reader) == ([(1, "one"), (2, "two")], _COMPLETED)


_COMPLETED = End("completed", finish_reasons={0: "stop"}, usage={"total_tokens": 3})


def _entry(text: str) -> Entry:
    return Entry(text.encode(), "", 0.5)


async def _create(log: StreamLog, key: str, *, digest: str = "", retain: bool = True) -> Writer:
    writer = await log.create(key, digest=digest, retain=retain)
    assert writer is not None
    return writer


async def _turns() -> None:
    """Time for what is due at once."""
    for _ in range(5):
        await asyncio.sleep(0)


async def _drain(reader: Reader) -> tuple[list[tuple[int, str]], End | None]:
    entries: list[tuple[int, str]] = []
    end = None
    batch: Batch
    async for batch in reader:
        entries += [(batch.first_id + place, entry.data.decode()) for place, entry in enumerate(batch.entries)]
        end = batch.end
    await reader.aclose()
    return entries, end


@contextmanager
def _raises(expected: type[OpenAISSEError]) -> Iterator[None]:
    """As pytest's, which is not needed to ship this."""
    try:
        yield
    except expected:
        return
    raise AssertionError(f"{expected.__name__} was not raised")
