"""The contract of a store: who reads and writes a stream, and what processes tell each other."""

from __future__ import annotations

import asyncio

import pytest

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs.mirror import Processes, State
from tests.logs.mirror.store_contract_base import ANN, BOB, Process, StoreContractBase, batch, end, stream, write

NAMES = frozenset({ANN, BOB})


class ProcessesContract(StoreContractBase):
    """Presence, stops, claims, leases, messages."""

    async def state(self, process: Process, key: str = "k") -> State:
        (state,) = await process.store.states([key])
        assert state is not None
        return state

    # Readers and stops ------------------------------------------------------------------------------------------------

    async def test_a_process_that_reads_is_counted_until_it_leaves(self, ann: Process, bob: Process) -> None:
        await ann.store.create("k", stream())
        for _ in range(2):
            page = await bob.store.load("k", 0, 1000, reader=BOB, tell=b"here")
            assert page is not None
            assert page.state.readers == (BOB,)
            await ann.hears(("", b"here"))
        await ann.store.load("k", 0, 1000, reader=ANN)  # its writer's process is not counted
        await ann.store.load("k", 0, 1000, reader="c" * 16)
        assert sorted((await self.state(ann)).readers) == [BOB, "c" * 16]
        (written,) = await ann.store.write([write(0, 1)])
        assert (written.result, sorted(written.readers)) == ("done", [BOB, "c" * 16])
        await bob.store.leave("k", "c" * 16, tell=b"")
        for _ in range(2):
            await bob.store.leave("k", BOB, tell=b"gone")
            await ann.hears(("", b"gone"))
            assert (await self.state(ann)).readers == ()
        (written,) = await ann.store.write([write(1, 2)])
        assert written.readers == ()

    async def test_the_seconds_since_the_last_reader_left_are_known(self, ann: Process, bob: Process) -> None:
        await ann.store.create("k", stream())
        await self.pass_time(ann.store, 0.5)
        assert (await self.state(ann)).left_ago >= 0.4
        await bob.store.load("k", 0, 1000, reader=BOB)
        await bob.store.leave("k", BOB, tell=b"")
        left_ago = (await self.state(ann)).left_ago
        assert 0 <= left_ago < 0.4
        await self.pass_time(ann.store, 0.5)
        await bob.store.leave("k", BOB, tell=b"")
        assert (await self.state(ann)).left_ago >= left_ago + 0.4

    async def test_readers_of_a_stream_that_has_ended_are_not_counted(self, ann: Process, bob: Process) -> None:
        await ann.store.create("k", stream())
        await ann.store.write([write(0, 1, end=end())])
        page = await bob.store.load("k", 0, 1000, reader=BOB)
        assert page is not None
        assert (page.state.readers, len(page.batches)) == ((), 1)

    async def test_a_running_stream_is_asked_to_stop(self, ann: Process, bob: Process) -> None:
        await ann.store.create("k", stream())
        before = await bob.store.stop("k", "user", tell=b"stop")
        assert before is not None
        assert (before.writer, before.stop, before.end) == (f"{ANN}.1", "", b"")
        await ann.hears(("", b"stop"))
        before = await bob.store.stop("k", "another", tell=b"")
        assert before is not None
        assert before.stop == "user"
        (written,) = await ann.store.write([write(0, 1)])
        assert (written.result, written.stop) == ("done", "user")
        assert (await self.state(bob)).stop == "user"

    async def test_a_stream_that_has_ended_is_not_asked_to_stop(self, ann: Process, bob: Process) -> None:
        await ann.store.create("k", stream())
        await ann.store.write([write(0, 1, end=end())])
        before = await bob.store.stop("k", "user", tell=b"stop")
        assert before is not None
        assert before.end == end()
        assert (await self.state(bob)).stop == ""

    # Processes --------------------------------------------------------------------------------------------------------

    async def test_processes_are_alive_while_they_renew_their_leases(self, ann: Process, bob: Process) -> None:
        only_ann = frozenset({ANN})
        assert await ann.store.renew(0.6) == Processes(known=False, alive=only_ann, overdue=frozenset())
        assert await bob.store.renew(60) == Processes(known=False, alive=NAMES, overdue=frozenset())
        assert await ann.store.renew(0.6) == Processes(known=True, alive=NAMES, overdue=frozenset())
        await self.pass_time(ann.store, 0.7)
        found = await bob.store.renew(60)
        assert found == Processes(known=True, alive=frozenset({BOB}), overdue=only_ann)
        assert await ann.store.renew(60) == Processes(known=True, alive=NAMES, overdue=frozenset())
        for _ in range(2):
            await bob.store.bury(ANN)
            assert (await bob.store.renew(60)).alive == {BOB}
        assert not (await ann.store.renew(60)).known

    async def test_a_process_that_disconnects_is_forgotten(self, ann: Process, bob: Process) -> None:
        await ann.store.renew(60)
        assert (await bob.store.renew(60)).alive == NAMES
        await ann.store.aclose()
        await ann.store.aclose()
        found = await bob.store.renew(60)
        assert (found.alive, found.overdue) == (frozenset({BOB}), frozenset())
        await ann.open()
        assert not (await ann.store.renew(60)).known
        assert (await bob.store.renew(60)).alive == NAMES
        await bob.store.send(ANN, b"hello")
        await ann.hears(("", b"hello"))

    async def test_the_running_streams_of_a_process_are_known(self, ann: Process, bob: Process) -> None:
        await ann.store.renew(60)
        assert list(await bob.store.streams_of(ANN)) == []
        for number in range(3):
            await ann.store.create(f"k{number}", stream(f"{ANN}.{number}"))
        assert sorted(await bob.store.streams_of(ANN)) == ["k0", "k1", "k2"]
        assert list(await bob.store.streams_of(BOB)) == []
        await bob.store.claim("k1", ANN, f"{BOB}.1")
        assert list(await ann.store.streams_of(BOB)) == ["k1"]
        assert {"k0", "k2"} <= {*await bob.store.streams_of(ANN)}

    async def test_streams_are_known_after_their_process_was_buried_and_came_back(
        self, ann: Process, bob: Process
    ) -> None:
        await ann.store.renew(60)
        await ann.store.create("k", stream())
        await bob.store.bury(ANN)
        await ann.store.renew(60)
        assert list(await bob.store.streams_of(ANN)) == ["k"]

    async def test_one_process_gets_the_stream_of_a_dead_one(self, ann: Process, bob: Process) -> None:
        await ann.store.create("k", stream())
        await ann.store.write([write(0, 2, request=b"r", decided=end(b"d"))])
        assert await bob.store.claim("k", "c" * 16, f"{BOB}.1") is None  # not its writer's process
        writers = [f"{BOB}.1", f"{BOB}.2"]
        states = await asyncio.gather(*(bob.store.claim("k", ANN, writer) for writer in writers))
        (state,) = [each for each in states if each is not None]
        assert (state.attempt, state.count, state.about, state.decided) == (2, 2, b"about", end(b"d"))
        assert state.writer in writers
        again = await bob.store.claim("k", ANN, state.writer)
        assert again is not None
        assert (again.attempt, again.writer) == (2, state.writer)
        (lost,) = await ann.store.write([write(2, 3)])
        assert lost.result == "lost"
        assert await ann.store.create("k", stream()) is not None
        assert await bob.store.request("k") == b"r"
        (done,) = await bob.store.write([write(2, 2, writer=state.writer, end=end())])
        assert done.result == "done"
        assert await ann.store.claim("k", BOB, f"{ANN}.9") is None
        (lost,) = await ann.store.write([write(2, 2, end=end())])
        assert lost.result == "lost"

    # Messages ---------------------------------------------------------------------------------------------------------

    async def test_what_is_written_is_heard_where_the_stream_is_followed(self, ann: Process, bob: Process) -> None:
        for key in ("k", "l"):
            await ann.store.create(key, stream())
        for _ in range(2):
            await bob.store.follow("k")
        await ann.store.write([write(0, 2), write(0, 1, "l")])
        await bob.hears(("k", batch(1, b"1,", b"2,")))
        await ann.store.write([write(0, 2)])  # written before
        await ann.store.write([write(2, 3, end=end(b"e"))])
        await bob.hears(("k", batch(3, b"3,")), ("k", end(b"e")))
        assert ann.heard == []

    async def test_nothing_is_heard_of_a_stream_that_is_no_longer_followed(self, ann: Process, bob: Process) -> None:
        for key in ("k", "l"):
            await ann.store.create(key, stream())
            await bob.store.follow(key)
        for _ in range(2):
            await bob.store.unfollow({"k", "unknown"})
        await ann.store.write([write(0, 1)])
        await ann.store.write([write(0, 1, "l")])
        await bob.hears(("l", batch(1, b"1,")))
        await bob.store.unfollow(["l"])
        await bob.store.follow("l")
        await ann.store.write([write(1, 2, "l")])
        await bob.hears(("l", batch(2, b"2,")))

    async def test_many_streams_are_followed_at_once(self, ann: Process, bob: Process) -> None:
        keys = [f"k{number}" for number in range(200)]
        for key in keys:
            await ann.store.create(key, stream())
        await asyncio.gather(*map(bob.store.follow, keys))
        await ann.store.write([write(0, 1, key) for key in keys])
        await bob.until(lambda: len(bob.heard) >= 200)
        assert sorted(bob.heard) == sorted((key, batch(1, b"1,")) for key in keys)

    async def test_messages_reach_one_process_or_all(self, ann: Process, bob: Process) -> None:
        body = bytes(range(256))
        assert await ann.store.send(BOB, body) in (1, -1)
        await bob.hears(("", body))
        assert await ann.store.send("", b"all") in (2, -1)
        await bob.hears(("", b"all"))
        await ann.hears(("", b"all"))
        assert await ann.store.send("c" * 16, b"nobody") in (0, -1)

    # Failures ---------------------------------------------------------------------------------------------------------

    async def test_after_messages_may_have_been_missed_it_is_said(self, ann: Process, bob: Process) -> None:
        if self.cut is None:
            pytest.skip("`cut` is not defined")
        await ann.store.create("k", stream())
        await bob.store.follow("k")
        assert bob.again == 0
        await self.cut(bob.store)
        await bob.until(lambda: bob.again)
        await ann.store.write([write(0, 1)])
        await bob.hears(("k", batch(1, b"1,")))
        await bob.store.follow("l")
        await ann.store.send(BOB, b"hello")
        await bob.hears(("", b"hello"))

    async def test_a_store_that_was_emptied_lets_its_writers_begin_again(self, ann: Process, bob: Process) -> None:
        if self.forget is None:
            pytest.skip("`forget` is not defined")
        await ann.store.renew(60)
        await ann.store.create("k", stream(owner="o"))
        await ann.store.write([write(0, 1)])
        await self.forget(ann.store)
        assert ann.store.forgetful
        assert not (await ann.store.renew(60)).known
        assert [written.result for written in await ann.store.write([write(1, 2)])] == ["gone"]
        assert await ann.store.create("k", stream(owner="o")) is None
        assert [written.result for written in await ann.store.write([write(0, 2)])] == ["done"]
        assert [key for key, _ in await bob.store.find("o")] == ["k"]
        assert list(await bob.store.streams_of(ANN)) == ["k"]

    async def test_while_the_store_is_away_everything_says_so(self, ann: Process, bob: Process) -> None:
        if self.unreachable is None:
            pytest.skip("`unreachable` is not defined")
        store = ann.store
        assert await store.ready()
        await store.create("k", stream())
        async with self.unreachable(store):
            calls = [
                store.create("l", stream()),
                store.write([write(0, 1)]),
                store.load("k", 0, 1000),
                store.leave("k", BOB, tell=b""),
                store.states(["k"]),
                store.stop("k", "reason", tell=b""),
                store.claim("k", BOB, f"{ANN}.1"),
                store.request("k"),
                store.find("o"),
                store.erase("k"),
                store.renew(60),
                store.streams_of(ANN),
                store.bury(BOB),
                store.send(ANN, b"x"),
            ]
            async with asyncio.timeout(20):
                results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [LogUnavailable] * len(calls)
            assert not await store.ready()
            await store.unfollow(["k"])
        async with asyncio.timeout(20):
            while not await store.ready():
                await asyncio.sleep(0.02)
        await store.write([write(0, 1)])
        assert (await self.state(bob)).count == 1
