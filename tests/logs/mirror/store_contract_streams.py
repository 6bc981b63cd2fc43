"""The contract of a store: its streams, from their beginning until they are forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from quart_openai_sse.logs.mirror import Written
from quart_openai_sse.logs.mirror.wire import HEADER
from tests.logs.mirror.store_contract_base import ANN, BOB, Process, StoreContractBase, batch, end, stream, write

KEYS = ["k", "owner:id", "{", "}", "a}b{c", "ü 漢\n", "%s", "*?[x]", "\x00", "k" * 300]
ALL_BYTES = bytes(range(256))


class StreamsContract(StoreContractBase):
    """Streams: create, write, load, expire, erase."""

    async def test_what_is_unknown_is_nothing(self, ann: Process) -> None:
        store = ann.store
        assert await store.states(["k", "l"]) == [None, None]
        assert await store.states([]) == []
        assert await store.load("k", 0, 1000) is None
        assert await store.load("k", 0, 1000, reader=BOB, tell=b"t") is None
        assert await store.stop("k", "reason", tell=b"t") is None
        assert await store.claim("k", BOB, f"{ANN}.1") is None
        assert await store.request("k") == b""
        assert await store.find("owner") == []
        assert list(await store.write([])) == []
        await store.erase("k")
        await store.leave("k", BOB, tell=b"t")
        assert await store.states(["k"]) == [None]

    @pytest.mark.parametrize("key", KEYS)
    async def test_any_key_names_a_stream_of_its_own(self, ann: Process, bob: Process, key: str) -> None:
        assert await ann.store.create(key, stream()) is None
        await ann.store.write([write(0, 2, key)])
        page = await bob.store.load(key, 0, 1000)
        assert page is not None
        assert list(page.batches) == [batch(1, b"1,", b"2,")]
        assert await bob.store.states([other for other in KEYS if other != key]) == [None] * (len(KEYS) - 1)

    async def test_a_stream_is_created_once(self, ann: Process, bob: Process) -> None:
        first = stream(digest="one", about=ALL_BYTES)
        assert await ann.store.create("k", first) is None
        assert await ann.store.create("k", first) is None
        state = await bob.store.create("k", stream(f"{BOB}.1", digest="two", about=b"other"))
        assert state is not None
        assert (state.writer, state.digest, state.about) == (f"{ANN}.1", "one", ALL_BYTES)
        assert (state.count, state.end, state.decided, state.stop) == (0, b"", b"", "")
        assert (state.attempt, state.readers, state.kept) == (1, (), True)

    async def test_of_two_creates_at_once_one_gets_the_key(self, ann: Process, bob: Process) -> None:
        creates = [ann.store.create("k", stream()), bob.store.create("k", stream(f"{BOB}.1"))]
        states = await asyncio.gather(*creates)
        assert sum(state is None for state in states) == 1

    async def test_creating_again_keeps_what_was_written(self, ann: Process) -> None:
        await ann.store.create("k", stream())
        await ann.store.write([write(0, 3)])
        assert await ann.store.create("k", stream()) is None
        assert await ann.store.write([write(3, 4)]) == [Written(result="done", count=4)]

    async def test_a_batch_is_written_once(self, ann: Process, bob: Process) -> None:
        await ann.store.create("k", stream())
        body = batch(1, ALL_BYTES, b"", b"\r\n")
        for _ in range(2):
            assert await ann.store.write([write(0, 3, batch=body)]) == [Written(result="done", count=3)]
        page = await bob.store.load("k", 0, 1000)
        assert page is not None
        assert (list(page.batches), page.state.count, page.state.about) == ([body], 3, b"about")

    async def test_a_write_at_another_place_tells_how_many_there_are(self, ann: Process) -> None:
        await ann.store.create("k", stream())
        await ann.store.write([write(0, 3)])
        for place, count in [(0, 2), (0, 5), (2, 5), (4, 5)]:
            assert await ann.store.write([write(place, count)]) == [Written(result="moved", count=3)]
        page = await ann.store.load("k", 0, 1000)
        assert page is not None
        assert len(page.batches) == 1

    async def test_only_its_writer_can_write(self, ann: Process, bob: Process) -> None:
        await ann.store.create("k", stream())
        changes: list[dict[str, Any]] = [{}, {"end": end()}, {"decided": end()}, {"request": b"r"}]
        for members in changes:
            (written,) = await bob.store.write([write(0, 1, writer=f"{BOB}.1", **members)])
            assert written.result == "lost"
            (written,) = await bob.store.write([write(0, 0, writer=f"{ANN}.2", **members)])
            assert written.result == "lost"
        page = await ann.store.load("k", 0, 1000)
        assert page is not None
        assert (page.state.count, page.state.end, page.state.decided, page.batches) == (0, b"", b"", [])
        assert await ann.store.request("k") == b""

    async def test_a_write_to_an_unknown_stream_is_gone(self, ann: Process) -> None:
        assert await ann.store.write([write(0, 1)]) == [Written(result="gone")]
        assert await ann.store.states(["k"]) == [None]

    async def test_many_streams_are_written_at_once_and_each_has_its_result(self, ann: Process) -> None:
        keys = [f"k{n}" for n in range(30)]
        for number, key in enumerate(keys):
            await ann.store.create(key, stream(f"{ANN}.{number}"))
        writes = [write(0, n + 1, key, f"{ANN}.{n}") for n, key in enumerate(keys)]
        done = [Written(result="done", count=n + 1) for n in range(30)]
        unknown, wrong = write(0, 1, "unknown"), write(7, 9, "k0", f"{ANN}.0")
        gone, moved = Written(result="gone"), Written(result="moved", count=1)
        assert list(await ann.store.write([unknown, *writes, wrong])) == [gone, *done, moved]
        assert list(await ann.store.write([*writes, unknown])) == [*done, gone]
        states = await ann.store.states([*keys, "unknown"])
        assert [state and state.count for state in states] == [*range(1, 31), None]
        assert [state.about for state in states if state] == [b""] * 30

    async def test_an_end_is_written_once_with_the_last_batch(self, ann: Process, bob: Process) -> None:
        await ann.store.create("k", stream())
        await ann.store.write([write(0, 2)])
        last = write(2, 4, end=end(ALL_BYTES), decided=end(b"d"), request=b"r")
        for _ in range(2):
            assert await ann.store.write([last]) == [Written(result="done", count=4)]
        page = await bob.store.load("k", 0, 1000)
        assert page is not None
        assert (page.state.end, page.state.count, len(page.batches)) == (end(ALL_BYTES), 4, 2)
        assert 0 <= page.state.ended_ago < 30
        assert await bob.store.request("k") == b""
        (written,) = await ann.store.write([write(0, 2)])  # an earlier write that comes late
        assert written.result != "gone"
        assert (await bob.store.states(["k"]))[0].count == 4  # type: ignore[union-attr]

    async def test_a_decided_end_and_a_request_are_stored_until_the_end(self, ann: Process, bob: Process) -> None:
        await ann.store.create("k", stream())
        for _ in range(2):
            (written,) = await ann.store.write([write(0, 0, request=ALL_BYTES)])
            assert written == Written(result="done")
        assert await bob.store.request("k") == ALL_BYTES
        for _ in range(2):
            await ann.store.write([write(0, 1, decided=end(b"d"))])
        (state,) = await bob.store.states(["k"])
        assert state is not None
        assert (state.decided, state.end, state.count) == (end(b"d"), b"", 1)
        assert await bob.store.request("k") == ALL_BYTES

    @pytest.mark.parametrize("size", [1, 40, 1000, 100_000])
    async def test_a_page_begins_with_the_batch_that_has_the_next_entry(self, ann: Process, size: int) -> None:
        await ann.store.create("k", stream())
        counts = [1, 2, 5, 6, 10, 30, 31, 32, 33, 60, 100, 101]
        batches, place = [], 0
        for count in counts:
            item = write(place, count)
            batches.append(item.batch)
            await ann.store.write([item])
            place = count
        for place in range(101):
            page = await ann.store.load("k", place, size)
            assert page is not None
            first, number, _ = HEADER.unpack_from(page.batches[0])
            assert first <= place + 1 < first + number
            begin = batches.index(page.batches[0])
            assert list(page.batches) == batches[begin : begin + len(page.batches)]
            assert sum(map(len, page.batches[:-1])) < size
            assert sum(map(len, page.batches)) >= size or page.batches[-1] == batches[-1]
        for place in (101, 500):
            page = await ann.store.load("k", place, size)
            assert page is not None
            assert (page.state.count, list(page.batches)) == (101, [])

    async def test_the_batches_expire_and_then_the_tombstone(self, ann: Process, bob: Process) -> None:
        await ann.store.create("k", stream(digest="one", owner="o"))
        await ann.store.write([write(0, 2, end=end(), retention=0.3, tombstone=0.6)])
        await self.pass_time(ann.store, 0.4)
        page = await bob.store.load("k", 0, 1000, reader=BOB)
        assert page is not None
        assert (page.state.kept, page.state.digest, page.state.about, page.batches) == (False, "one", b"", [])
        assert page.state.ended_ago > 0.3
        (state,) = await bob.store.states(["k"])
        assert state is not None
        assert (state.kept, state.end != b"", state.readers) == (False, True, ())
        holder = await bob.store.create("k", stream(f"{BOB}.1", digest="two"))
        assert holder is not None
        assert (holder.digest, holder.kept) == ("one", False)
        assert await bob.store.find("o") == []
        await self.pass_time(ann.store, 0.7)
        assert await bob.store.load("k", 0, 1000) is None
        assert await bob.store.create("k", stream(f"{BOB}.1", digest="two")) is None

    async def test_a_stream_that_does_not_hold_its_key_is_replaced(self, ann: Process, bob: Process) -> None:
        await ann.store.create("k", stream(owner="o"))
        await bob.store.load("k", 0, 1000, reader=BOB)
        await ann.store.stop("k", "reason", tell=b"")
        await ann.store.write([write(0, 0, end=end(), holds_key=False)])
        page = await bob.store.load("k", 0, 1000)
        assert page is not None
        assert (page.state.end, page.state.kept) == (end(), True)
        assert await bob.store.create("k", stream(f"{BOB}.1", digest="two", about=b"new", owner="o")) is None
        page = await ann.store.load("k", 0, 1000)
        assert page is not None
        state = page.state
        assert (state.writer, state.digest, state.about) == (f"{BOB}.1", "two", b"new")
        assert (state.end, state.stop, state.readers, state.attempt) == (b"", "", (), 1)
        assert [key for key, _ in await bob.store.find("o")] == ["k"]

    async def test_erasing_leaves_the_tombstone_of_a_stream_that_has_ended(self, ann: Process, bob: Process) -> None:
        await ann.store.create("k", stream(digest="one", owner="o"))
        await ann.store.write([write(0, 2, request=b"r")])
        await bob.store.erase("k")
        page = await bob.store.load("k", 0, 1000)
        assert page is not None
        assert (page.state.kept, len(page.batches)) == (True, 1)  # it runs
        await ann.store.write([write(2, 2, end=end())])
        for _ in range(2):
            await bob.store.erase("k")
            page = await bob.store.load("k", 0, 1000)
            assert page is not None
            assert (page.state.kept, page.state.digest, page.state.about, page.batches) == (False, "one", b"", [])
            assert page.state.end != b""
        assert await bob.store.find("o") == []
        assert await bob.store.create("k", stream(f"{BOB}.1", digest="two")) is not None

    async def test_the_streams_of_an_owner_are_found_newest_first(self, ann: Process, bob: Process) -> None:
        for number, created in enumerate([3.0, 1.0, 2.0]):
            members = {"owner": "o", "created": created, "about": b"%d" % number}
            await ann.store.create(f"o:{number}" if number else "k", stream(f"{ANN}.{number}", **members))
        await ann.store.create("other", stream(f"{ANN}.3", owner="p"))
        await ann.store.create("nobody", stream(f"{ANN}.4"))
        await ann.store.write([write(0, 1, "o:2", f"{ANN}.2", end=end())])
        found = await bob.store.find("o")
        assert [(key, state.about) for key, state in found] == [("k", b"0"), ("o:2", b"2"), ("o:1", b"1")]
        assert [state.end for _, state in found] == [b"", end(), b""]
        assert [key for key, _ in await bob.store.find("p")] == ["other"]
        assert await bob.store.find("") == []
        assert await bob.store.find("nobody") == []
