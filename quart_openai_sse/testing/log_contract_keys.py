"""The contract of a stream log: keys, finding, stopping, and streams without readers."""

from __future__ import annotations

import asyncio

from quart_openai_sse.errors import KeyReused, StreamNotFound, UpstreamTruncated
from quart_openai_sse.logs import StreamLog
from quart_openai_sse.logs.entries import About
from quart_openai_sse.testing.log_contract_base import (
    COMPLETED,
    ContractBase,
    Watched,
    about,
    contract_test,
    create,
    drain,
    entry,
    failed,
    linger_passes,
    numbered,
    raises,
    take,
    written,
)


class KeysContract(ContractBase):
    """The tests of `create`, `stop`, `tail`, `find` and `Writer.watch`."""

    @contract_test
    async def test_a_key_that_exists_is_attached_to(self, here: StreamLog, there: StreamLog) -> None:
        """With the same digest `create` returns `None`; with another digest it raises `KeyReused`."""
        writer = await create(here, "a", digest="x")
        for _ in ("while it runs", "after its end"):
            assert await there.create("a", about=about(), digest="x", retain=True) is None
            with raises(KeyReused):
                await there.create("a", about=about(), digest="y", retain=True)
            writer.append([entry("one")])
            await writer.close(COMPLETED)

    @contract_test
    async def test_of_two_creates_at_once_one_gets_the_stream(self, here: StreamLog, there: StreamLog) -> None:
        """One of the two gets a `Writer`, the other `None`: a request that is sent twice is produced once."""
        for key in "abcdefgh":
            writers = await asyncio.gather(
                here.create(key, about=about(), digest="x", retain=True),
                there.create(key, about=about(), digest="x", retain=True),
            )
            assert [writer is None for writer in writers] in ([True, False], [False, True])

    @contract_test
    async def test_a_stream_that_failed_without_an_entry_does_not_hold_its_key(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """A second request with its key starts a new stream, whatever its digest, and the first writer is done."""
        first = await create(here, "a", digest="x")
        await first.close(failed(UpstreamTruncated()))
        second = await create(there, "a", digest="y")
        second.append([entry("one")])
        first.append([entry("of the first")])
        await first.close(failed(UpstreamTruncated()))
        await second.close(COMPLETED)
        assert await drain(await here.read("a")) == (numbered("one"), COMPLETED)

    @contract_test
    async def test_an_unknown_stream_is_not_found(self, here: StreamLog, there: StreamLog) -> None:
        """`read`, `stop` and `tail` raise `StreamNotFound` for an unknown key."""
        with raises(StreamNotFound):
            await there.read("nowhere")
        with raises(StreamNotFound):
            await there.stop("nowhere", "because")
        with raises(StreamNotFound):
            await there.tail("nowhere")

    @contract_test
    async def test_tail_names_the_last_entry_and_says_whether_the_stream_has_ended(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """The last id is "" before the first entry, and a last event ID for `read` afterwards."""
        writer = await create(here, "a")
        assert await there.tail("a") == ("", False)
        writer.append([entry("one"), entry("two")])
        assert await here.tail("a") == ("2", False)
        await written(there, "a", "2")
        assert await there.tail("a") == ("2", False)
        await writer.close(COMPLETED)
        assert await there.tail("a") == ("2", True)

    # find -------------------------------------------------------------------------------------------------------------

    @contract_test
    async def test_a_key_that_is_used_again_belongs_to_its_new_stream(self, here: StreamLog, there: StreamLog) -> None:
        """A reader of the stream that failed before, which is still open, takes nothing from the new one."""
        writer = await create(here, "a", digest="x")
        old = await here.read("a")
        await writer.close(failed(UpstreamTruncated()))
        assert await there.find("ann") == []
        again = await create(here, "a", digest="x")
        await old.aclose()
        again.append([entry("one")])
        assert await there.find("ann") == [about()]
        await written(there, "a", "1")
        assert await there.tail("a") == ("1", False)
        await again.close(COMPLETED)
        assert await drain(await there.read("a")) == (numbered("one"), COMPLETED)

    @contract_test
    async def test_a_stream_is_found_with_everything_that_is_known_of_it(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """`find` and readers have the `About` that `create` was given."""
        known = About(
            id="0123456789abcdef0123456789abcdef",
            owner="ann",
            thread="Größe",
            model="model/7",
            created=1764547200.123456,
            echo=bytes(range(256)) * 256,
        )
        await create(here, "a", known=known)
        assert await there.find("ann") == [known]
        reader = await there.read("a")
        assert reader.about == known
        await reader.aclose()

    @contract_test
    async def test_an_owner_finds_its_own_running_streams_newest_first(self, here: StreamLog, there: StreamLog) -> None:
        """`find` returns no stream of another owner, of an anonymous caller, or that is passing."""
        known = [about("a", created=1.0), about("b", created=2.0), about("c", created=3.0)]
        for number, each in enumerate(known):
            await create((here, there)[number % 2], each.id, known=each)
        for key, owner, retain in (("d", "bob", True), ("e", "", True), ("f", "ann", False)):
            await create(here, key, known=about(key, owner=owner), retain=retain)
        assert await here.find("ann") == await there.find("ann") == known[::-1]
        assert await there.find("bob") == [about("d", owner="bob")]
        assert await here.find("") == await there.find("") == await there.find("nobody") == []

    @contract_test
    async def test_the_streams_of_one_thread_are_found(self, here: StreamLog, there: StreamLog) -> None:
        """`find` with a *thread* returns only its streams; with "", only streams without a thread."""
        known = [about("a", thread="t"), about("b", thread="u"), about("c"), about("d", thread="t", owner="bob")]
        for each in known:
            await create(here, each.id, known=each)
        assert await there.find("ann", thread="t") == [known[0]]
        assert await there.find("ann", thread="") == [known[2]]
        assert await there.find("ann", thread="v") == []

    @contract_test
    async def test_streams_that_ended_a_moment_ago_are_found_if_asked_for(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """By default `find` returns running streams only."""
        ended, running = about("a", created=1.0), about("b", created=2.0)
        writer = await create(here, "a", known=ended)
        await create(here, "b", known=running)
        writer.append([entry("one")])
        await writer.close(COMPLETED)
        assert await there.find("ann") == [running]
        assert await there.find("ann", ended_within=60) == [running, ended]

    # stop and watch ---------------------------------------------------------------------------------------------------

    @contract_test
    async def test_a_stop_reaches_the_producer(self, here: StreamLog, there: StreamLog) -> None:
        """The producer gets the reason of the first stop, even if it watches later."""
        writer = await create(here, "a")
        watched = Watched(writer)
        await there.stop("a", "first")
        await there.stop("a", "second")
        assert await watched.stopped.get() == "first"
        late = await create(here, "b")
        await there.stop("b", "early")
        assert await Watched(late).stopped.get() == "early"
        assert watched.stopped.empty()

    @contract_test
    async def test_a_stop_after_the_end_does_nothing(self, here: StreamLog, there: StreamLog) -> None:
        """The stream keeps its end, and the producer is not told of the stop."""
        writer = await create(here, "a")
        reader = await there.read("a")
        watched = Watched(writer, linger=0)
        writer.append([entry("one")])
        assert await take(reader, 1) == [entry("one")]
        await writer.close(COMPLETED)
        await there.stop("a", "late")
        assert await drain(reader) == ([], COMPLETED)
        await linger_passes(here)
        assert (watched.stopped.empty(), watched.left.is_set(), watched.lost.is_set()) == (True, False, False)

    @contract_test
    async def test_the_producer_is_told_when_the_last_reader_has_closed(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """The producer is not told while any process has a reader."""
        writer = await create(here, "a")
        mine, elsewhere = await here.read("a"), await there.read("a")
        left = Watched(writer, linger=0).left
        await linger_passes(here)
        assert not left.is_set()
        await mine.aclose()
        await mine.aclose()
        await linger_passes(there)
        assert not left.is_set()
        await elsewhere.aclose()
        await left.wait()

    @contract_test
    async def test_a_reader_that_comes_within_the_linger_keeps_the_stream(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """The producer is not told: a new reader ends the linger."""
        writer = await create(here, "a")
        left = Watched(writer, linger=0.3).left
        await (await there.read("a")).aclose()
        again = await there.read("a")
        await linger_passes(here, linger=0.3)
        assert not left.is_set()
        await again.aclose()
        await left.wait()

    @contract_test
    async def test_a_stream_without_readers_goes_on_for_its_linger(self, here: StreamLog, there: StreamLog) -> None:
        """The producer is not told before the linger has passed, so that a client can reconnect."""
        left = Watched(await create(here, "a"), linger=60).left
        await (await there.read("a")).aclose()
        await linger_passes(here)
        assert not left.is_set()

    @contract_test
    async def test_the_producer_is_told_when_the_stream_never_had_a_reader(
        self, here: StreamLog, there: StreamLog
    ) -> None:
        """The linger of a stream without any reader begins when the stream is created."""
        await Watched(await create(here, "a"), linger=0).left.wait()
