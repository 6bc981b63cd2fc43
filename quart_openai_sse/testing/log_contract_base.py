"""What the contract's tests of a stream log share: what a subclass may define, and tools."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from itertools import count
from typing import Any, TypeVar
from unittest import SkipTest

from quart_openai_sse.errors import ErrorValue, KeyReused, OpenAISSEError, ProducerLost, StreamExpired
from quart_openai_sse.logs import Reader, StreamLog, Writer
from quart_openai_sse.logs.entries import END_ID, About, Batch, End, Entry, Kind

ContractT = TypeVar("ContractT", bound="ContractBase")

COMPLETED = End("completed", finish_reasons={0: "stop"}, usage={"total_tokens": 3})


class ContractBase:
    """What a subclass may define besides the fixture `log`. Without it the tests that need it are skipped."""

    timeout: float = 10
    """Seconds that one test may take."""

    max_bytes: int | None = None
    """The bytes of entries that no stream of `log` can hold, for the test of `StreamTooLong`."""

    def other(self, log: StreamLog) -> StreamLog:
        """The same store, seen by another process: a second log, which is not open yet.

        By default it is *log* itself, which is right for a log in the memory of one process.
        """
        return log

    async def expire(self, log: StreamLog) -> None:
        """Lets time pass until the streams that have ended are no longer kept."""
        raise SkipTest("`expire` is not defined: it lets time pass until ended streams have expired")

    def unreachable(self, log: StreamLog) -> AbstractAsyncContextManager[None]:
        """A context in which neither *log* nor the other log can reach their store."""
        raise SkipTest("`unreachable` is not defined: a context in which the store cannot be reached")

    async def lose(self, log: StreamLog) -> None:
        """Lets the other processes take the process of *log* for dead, although it runs on."""
        raise SkipTest("`lose` is not defined: it lets the other processes take the process of a log for dead")


def contract_test(
    test: Callable[[ContractT, StreamLog, StreamLog], Awaitable[None]],
) -> Callable[[ContractT, StreamLog], Coroutine[Any, Any, None]]:
    """Makes a test out of a coroutine function of two open logs: *here*, where streams are produced, and *there*."""

    async def run(self: ContractT, log: StreamLog) -> None:
        other = self.other(log)
        try:
            async with asyncio.timeout(self.timeout):
                await log.open()
                await other.open()
                await test(self, log, other)
        finally:
            await other.aclose()
            await log.aclose()

    # Not by functools.wraps: pytest would look for fixtures of the names `here` and `there`.
    run.__name__, run.__qualname__, run.__doc__ = test.__name__, test.__qualname__, test.__doc__
    return run


# Tools ----------------------------------------------------------------------------------------------------------------


class Watched:
    """What the log has told the producer of a stream."""

    def __init__(self, writer: Writer, *, linger: float = 60) -> None:
        self.stopped: asyncio.Queue[str] = asyncio.Queue()
        self.left = asyncio.Event()
        self.lost = asyncio.Event()
        writer.watch(stopped=self.stopped.put_nowait, left=self.left.set, lost=self.lost.set, linger=linger)


def about(name: str = "a", **members: Any) -> About:
    """What a log is told of the stream *name*."""
    return About(**{"id": name * 32, "owner": "ann", "model": "model", "created": 1.5, **members})


async def create(
    log: StreamLog, key: str, *, known: About | None = None, digest: str = "", retain: bool = True
) -> Writer:
    """A new stream, which every process can find."""
    writer = await log.create(key, about=known or about(), digest=digest, retain=retain)
    assert writer is not None, "create() returned None for a new key"
    await writer.stored()
    return writer


def entry(text: str) -> Entry:
    """A plain chunk."""
    return Entry(text.encode(), 0.5)


def numbered(*texts: str, first: int = 1) -> list[tuple[str, Entry]]:
    """Plain chunks with their ids, as `drain` returns them."""
    return [(str(place), entry(text)) for place, text in enumerate(texts, first)]


def failed(error: OpenAISSEError) -> End:
    """The end of a stream that failed with *error*."""
    return End("failed", error.code or "", ErrorValue.of(error))


ENTRIES = [
    Entry(b'{"choices":[]}', 0.25),
    Entry(b"\xff\x00\xfe not UTF-8 \r\n\n", 1.5),
    Entry(b"", 2.0),
    Entry(b'{"usage":{}}', 2.5, usage=True),
    Entry(b'{"object":"chat.completion"}', 3.0, kind=Kind.ANSWER),
    Entry(b"[1]", 3.5, kind=Kind.EVENT, name="sources"),
    Entry(b"x" * (1 << 20), 4.0),
]
"""One entry of each sort."""


async def drain(reader: Reader) -> tuple[list[tuple[str, Entry]], End | None]:
    """The remaining entries with their ids, and the end; closes the reader. Checks that the places are dense."""
    entries: list[tuple[str, Entry]] = []
    end: End | None = None
    place: int | None = None
    batch: Batch
    async for batch in reader:
        assert end is None, "a batch came after the end"
        assert place in (None, batch.first), f"a batch begins at {batch.first} instead of {place}"
        assert batch.epoch == 1
        place = batch.first + len(batch.entries)
        entries += [(batch.id(number), each) for number, each in enumerate(batch.entries, batch.first)]
        end = batch.end
    assert reader.at_end is (end is not None or not entries)
    await reader.aclose()
    return entries, end


def check_lost(end: End | None) -> None:
    """Checks the end of a stream whose producer was lost."""
    assert end is not None
    assert (end.outcome, end.reason) == ("failed", "producer_lost")
    assert end.error is not None
    assert isinstance(end.error.exception(), ProducerLost)


async def check_expired(log: StreamLog, key: str) -> None:
    """Checks that a stream of the digest "x", which nobody can read any more, still holds its *key*."""
    for after in ("", "1", END_ID):
        with raises(StreamExpired):
            await log.read(key, after=after)
    with raises(StreamExpired):
        await log.tail(key)
    await log.stop(key, "late")
    assert await log.create(key, about=about(), digest="x", retain=True) is None
    with raises(KeyReused):
        await log.create(key, about=about(), digest="y", retain=True)


async def take(reader: Reader, count: int) -> list[Entry]:
    """The next *count* entries of a running stream."""
    entries: list[Entry] = []
    while len(entries) < count:
        batch = await anext(aiter(reader))
        assert batch.end is None, "the stream has ended"
        entries += batch.entries
    return entries


async def linger_passes(log: StreamLog, *, linger: float = 0) -> None:
    """Returns when *log* has told the producer of a new stream that no reader has read it for *linger* seconds.

    By then it would also have told the producer of any older stream without readers for as long.
    """
    left = Watched(await create(log, f"unread {next(_numbers)}"), linger=linger).left
    await left.wait()


_numbers = count()


async def tasks_wait(log: StreamLog) -> None:
    """Returns when the test's tasks have begun to wait for *log*, which has answered a request in the meantime."""
    await asyncio.sleep(0)
    await log.find("nobody")
    await asyncio.sleep(0)


async def written(log: StreamLog, key: str, last: str) -> None:
    """Waits until *log* knows of the entry *last* of a stream."""

    async def is_written() -> bool:
        return (await log.tail(key))[0] == last

    await until(is_written)


async def until(reached: Callable[[], Awaitable[bool]]) -> None:
    """Waits for something that a log may do a moment later. The test's timeout ends the wait."""
    while not await reached():  # noqa: ASYNC110 (nothing of a log's own can be awaited here)
        await asyncio.sleep(0.005)


@contextmanager
def raises(expected: type[OpenAISSEError]) -> Iterator[None]:
    """Like `pytest.raises`; the package does not depend on pytest."""
    try:
        yield
    except expected:
        return
    raise AssertionError(f"{expected.__name__} was not raised")
