"""The log in memory: the contract, what it gives up and when, and any reconnects whatsoever."""

from __future__ import annotations

import asyncio
import selectors

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse.errors import StreamExpired, StreamNotFound, StreamTooLong
from quart_openai_sse.flow import Flow
from quart_openai_sse.logs.entries import END_ID, About, Batch, End, Entry
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.testing import StreamLogContract
from tests.conftest import Clock

ABOUT = About(id="0" * 32, owner="ann")
COMPLETED = End("completed", finish_reasons={0: "stop"})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> MemoryLog:
    return MemoryLog(clock=clock)


class TestContract(StreamLogContract):
    """The memory log keeps the contract of every log. What it cannot have is not skipped, but left out."""

    max_bytes = 64 << 20

    # It has no store that could be unreachable,
    test_an_unreachable_store_is_no_missing_stream = None
    test_an_end_that_cannot_be_stored_at_once_is_stored_later = None
    test_a_log_that_could_not_be_opened_can_be_opened_later = None
    # and no other process that could take this one for dead, or die.
    test_the_streams_of_a_process_that_is_taken_for_dead_fail = None
    test_a_producer_that_was_taken_for_dead_is_told_and_fenced = None
    test_a_stream_that_has_ended_is_not_lost = None
    test_the_readers_of_a_dead_process_do_not_keep_a_stream = None
    test_a_process_that_was_taken_for_dead_decides_nothing = None
    test_a_decided_end_is_the_end_of_a_lost_stream = None
    test_a_stream_that_is_lost_while_it_ends_has_one_end = None
    test_a_lost_stream_is_handed_to_one_living_process = None
    test_a_lost_stream_is_handed_over_with_the_end_that_was_decided = None
    test_every_running_stream_of_a_lost_process_is_handed_over = None
    test_closing_a_log_ends_no_stream_of_another_process = None

    async def expire(self, log: MemoryLog) -> None:
        log.clock.now += 301


async def test_an_ended_stream_is_kept_then_gone_then_forgotten(log: MemoryLog, clock: Clock) -> None:
    writer = await log.create("a", about=ABOUT, digest="", retain=True)
    writer.append([Entry(b"one")])
    await writer.close(COMPLETED)
    clock.now += 299
    await (await log.read("a")).aclose()
    clock.now += 2
    with pytest.raises(StreamExpired):
        await log.read("a")
    await log.stop("a", "too late, and nobody minds")
    assert await log.create("a", about=ABOUT, digest="", retain=True) is None
    clock.now += 3601
    with pytest.raises(StreamNotFound):
        await log.read("a")
    assert log.size == 0


async def test_a_running_stream_does_not_expire(log: MemoryLog, clock: Clock) -> None:
    writer = await log.create("a", about=ABOUT, digest="", retain=True)
    writer.append([Entry(b"one")])
    clock.now += 100_000
    assert (await anext(await log.read("a"))).entries == [Entry(b"one")]


async def test_memory_is_given_back_though_nobody_calls() -> None:
    log = MemoryLog(retention=0)
    writer = await log.create("a", about=ABOUT, digest="", retain=True)
    writer.append([Entry(b"x" * 1000)])
    await writer.close(COMPLETED)
    while log.size:
        await asyncio.sleep(0)


async def test_a_reader_keeps_what_it_holds_when_the_stream_expires(log: MemoryLog, clock: Clock) -> None:
    writer = await log.create("a", about=ABOUT, digest="", retain=True)
    writer.append([Entry(b"one"), Entry(b"two")])
    reader = await log.read("a")
    await writer.close(COMPLETED)
    clock.now += 301
    with pytest.raises(StreamExpired):
        await log.read("a")
    assert [batch async for batch in reader] == [Batch(1, [Entry(b"one"), Entry(b"two")], COMPLETED)]


async def test_a_retained_stream_fails_honestly_at_its_limits() -> None:
    log = MemoryLog(max_entries=3, max_bytes=10_000)
    writer = await log.create("a", about=ABOUT, digest="", retain=True)
    writer.append([Entry(b"1"), Entry(b"2"), Entry(b"3")])
    with pytest.raises(StreamTooLong):
        writer.append([Entry(b"4")])
    other = await log.create("b", about=ABOUT, digest="", retain=True)
    with pytest.raises(StreamTooLong):
        other.append([Entry(b"x" * 10_001)])
    assert [batch.entries async for batch in _ended(await log.read("a"), writer)] == [
        [Entry(b"1"), Entry(b"2"), Entry(b"3")]
    ]


async def _ended(reader, writer):
    await writer.close(COMPLETED)
    async for batch in reader:
        yield batch


async def test_ended_streams_make_room_for_running_ones() -> None:
    log = MemoryLog(max_log_bytes=7000)
    for name in "ab":
        writer = await log.create(name, about=ABOUT, digest="", retain=True)
        writer.append([Entry(b"x" * 1000)])
        await writer.close(COMPLETED)
    running = await log.create("c", about=ABOUT, digest="", retain=True)
    running.append([Entry(b"x" * 1000)])
    with pytest.raises(StreamExpired):
        await log.read("a")
    await (await log.read("b")).aclose()
    with pytest.raises(StreamTooLong):
        running.append([Entry(b"x" * 4000)])


async def test_a_stream_that_is_not_retained_is_forgotten_when_read(log: MemoryLog) -> None:
    writer = await log.create("a", about=ABOUT, digest="", retain=False)
    reader = await log.read("a")
    writer.append([Entry(b"one")])
    await writer.close(COMPLETED)
    assert [batch async for batch in reader] == [Batch(1, [Entry(b"one")], COMPLETED)]
    await reader.aclose()
    with pytest.raises(StreamNotFound):
        await log.read("a")
    assert log.size == 0


async def test_a_reader_far_behind_gets_bounded_batches(log: MemoryLog) -> None:
    writer = await log.create("a", about=ABOUT, digest="", retain=True)
    writer.append([Entry(b"x" * 100_000)] * 20)
    await writer.close(COMPLETED)
    sizes = [len(batch.entries) async for batch in await log.read("a")]
    assert sum(sizes) == 20
    assert max(sizes) <= 3


@given(
    texts=st.lists(st.binary(max_size=20), max_size=30),
    groups=st.lists(st.integers(1, 5), max_size=30),
    reads=st.lists(st.integers(0, 4), max_size=30),
)
def test_any_reconnects_lose_and_repeat_nothing(texts: list[bytes], groups: list[int], reads: list[int]) -> None:
    """A reader that leaves after any batches, and comes back with its last event ID, has every entry once."""

    async def run() -> list[bytes]:
        log = MemoryLog()
        writer = await log.create("a", about=ABOUT, digest="", retain=True)
        got: list[bytes] = []
        after = ""
        waiting = list(texts)
        for how_many in groups:
            writer.append([Entry(text) for text in waiting[:how_many]])
            del waiting[:how_many]
            for wanted in [reads.pop()] if reads else []:
                reader = await log.read("a", after=after, heartbeat=0)
                for _ in range(wanted):
                    batch = await anext(reader)
                    if batch.entries:
                        got += [entry.data for entry in batch.entries]
                        after = batch.id(batch.first + len(batch.entries) - 1)
                await reader.aclose()
        writer.append([Entry(text) for text in waiting])
        await writer.close(COMPLETED)
        async for batch in await log.read("a", after=after):
            got += [entry.data for entry in batch.entries]
            assert batch.end in (None, COMPLETED)
        assert (await log.read("a", after=END_ID)).at_end
        return got

    assert asyncio.run(run()) == texts


async def test_a_stream_that_is_not_kept_needs_no_room_in_a_full_log_for_a_reader_that_waits() -> None:
    log = MemoryLog(max_log_bytes=5000)
    kept = await log.create("kept", about=ABOUT, digest="", retain=True)
    kept.append([Entry(b"x" * 2800)])
    passing = await log.create("passing", about=ABOUT, digest="", retain=False)
    reader = await log.read("passing")
    opening = asyncio.ensure_future(reader.opened(60))
    await asyncio.sleep(0)
    assert passing.append([Entry(b"y" * 500)]) is Flow.MORE
    await opening
    assert (await anext(reader)).entries == [Entry(b"y" * 500)]
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    assert passing.append([Entry(b"z" * 500)]) is Flow.MORE
    assert (await waiting).entries == [Entry(b"z" * 500)]
    with pytest.raises(StreamTooLong):  # nobody waits for it
        passing.append([Entry(b"z" * 500)])


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__(_JumpingSelector(self))
        self.now = 1000.0

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None  # otherwise nothing would ever happen
        self._loop.now += timeout
        return super().select(0)


@pytest.mark.parametrize("retain", [True, False])
def test_a_heartbeat_comes_after_so_many_seconds_of_silence_and_not_before(retain: bool) -> None:
    async def times() -> list[tuple[float, int]]:
        loop = asyncio.get_running_loop()
        log = MemoryLog(clock=loop.time)
        writer = await log.create("a", about=ABOUT, digest="", retain=retain)
        reader = await log.read("a", heartbeat=15)
        begun = loop.time()
        for after in (10, 24, 38):
            loop.call_later(after, writer.append, [Entry(b"one")])
        found = []
        async for batch in reader:
            found.append((round(loop.time() - begun, 3), len(batch.entries)))
            if len(found) == 5:
                break
            if len(found) == 2:
                await asyncio.sleep(10)  # busy until 34: that is no silence
        await reader.aclose()
        return found

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        assert runner.run(times()) == [(10, 1), (24, 1), (38, 1), (53, 0), (68, 0)]
