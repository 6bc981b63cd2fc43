"""What one process tells a store, and when: with a store that answers, fails or waits as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from quart_openai_sse.limits import Holding, Leases, Others, Refusal, Wish
from quart_openai_sse.limits.sharing import Sharing
from quart_openai_sse.limits.tokens import SharedTokenBudget

STREAM = Wish(streams=1, most_streams=1)


class Store:
    """Counts that are kept in a list."""

    lease = 15.0

    def __init__(self) -> None:
        self.told: list[Holding] = []
        self.fails = False
        self.asked = asyncio.Event()
        self.opened = asyncio.Event()
        self.opened.set()
        self.answer: Callable[[Holding], Others] = lambda holding: Others(refusals=[""] * len(holding.wishes))

    async def renew(self) -> Leases:
        if self.fails:
            raise OSError
        return Leases(known=True, alive=frozenset({"me"}))

    async def count(self, holdings: Sequence[Holding]) -> Sequence[Others]:
        self.asked.set()
        await self.opened.wait()
        if self.fails:
            raise OSError
        self.told += holdings
        return [self.answer(holding) for holding in holdings]

    async def aclose(self) -> None:
        pass

    async def is_told(self, condition: Callable[[Holding], bool]) -> None:
        async with asyncio.timeout(10):
            while not self.told or not condition(self.told[-1]):
                await asyncio.sleep(0.005)


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
async def sharing(store: Store) -> AsyncIterator[Sharing]:
    sharing = Sharing(store, SharedTokenBudget(1000, 60))
    yield sharing
    store.fails = False
    store.opened.set()
    await sharing.aclose()


async def test_wishes_that_come_meanwhile_go_together_in_the_next_round_trip(sharing: Sharing, store: Store) -> None:
    store.opened.clear()
    taking: list[Awaitable[Refusal]] = [asyncio.ensure_future(sharing.take("ann", STREAM))]
    await store.asked.wait()
    taking += [asyncio.ensure_future(sharing.take(owner, STREAM)) for owner in ("ann", "bob", "ann")]
    await asyncio.sleep(0)
    store.opened.set()
    assert await asyncio.gather(*taking) == [""] * 4
    assert [(each.owner, each.streams, len(each.wishes)) for each in store.told] == [
        ("ann", 0, 1),
        ("ann", 1, 2),
        ("bob", 0, 1),
    ]


async def test_a_wish_that_is_given_up_while_it_is_granted_is_taken_back(
    sharing: Sharing, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.opened.clear()
    taking = asyncio.ensure_future(sharing.take("ann", Wish(streams=1, prompt=5, tokens=10)))
    await store.asked.wait()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    store.opened.set()
    await store.is_told(lambda holding: not holding.wishes)
    assert (store.told[-1].streams, store.told[-1].reserved) == (0, 0)
    assert not caplog.records


async def test_a_reader_that_waits_for_too_long_counts_here(sharing: Sharing, store: Store) -> None:
    store.opened.clear()
    assert await sharing.take("ann", Wish(stream="a", most_stream_readers=1), patience=0.01) == ""
    store.opened.set()
    await store.is_told(lambda holding: holding.readers == 1 and holding.reading == {"a": 1})


async def test_what_was_given_back_when_the_store_failed_is_told_when_it_is_back(
    sharing: Sharing, store: Store
) -> None:
    wish = Wish(streams=1, stream="a", prompt=5, tokens=10)
    store.answer = lambda holding: Others(refusals=[""] * len(holding.wishes), reserved=500)
    assert await sharing.take("ann", wish) == ""
    assert sharing.budget is not None
    assert sharing.budget.reserved("ann") == 510
    store.fails = True
    sharing.give_back("ann", streams=1, reader="a")
    async with asyncio.timeout(10):
        while not sharing.away:
            await asyncio.sleep(0.005)
    assert sharing.budget.reserved("ann") == 10  # nobody says when the others give theirs back
    assert await sharing.take("bob", wish) == ""
    store.fails = False
    await store.is_told(lambda holding: holding.owner == "bob" and holding.streams == 1)
    [ann] = [holding for holding in store.told[1:] if holding.owner == "ann"]
    assert (ann.streams, ann.readers, ann.reading) == (0, 0, {"a": 0})


async def test_a_refusal_is_final_only_if_those_that_hold_are_alive(sharing: Sharing, store: Store) -> None:
    def answer(holding: Holding) -> Others:
        refusal: Refusal = "" if "dead" in holding.dead else "streams"
        return Others(refusals=[refusal] * len(holding.wishes), holders=frozenset(holders - set(holding.dead)))

    store.answer = answer
    holders = {"me"}
    assert await sharing.take("ann", STREAM) == "streams"
    assert len(store.told) == 1
    holders = {"me", "dead"}
    assert await sharing.take("ann", STREAM) == ""
    assert [list(each.dead) for each in store.told] == [[], [], ["dead"]]


async def test_tokens_are_told_while_a_stream_runs_and_once_for_all_owners(sharing: Sharing, store: Store) -> None:
    assert sharing.budget is not None
    sharing.open()
    for owner in ("ann", "bob"):
        for _ in range(100):
            sharing.budget.spend(owner, 1, asyncio.get_running_loop().time())
    await store.is_told(lambda holding: holding.owner == "bob")
    assert [(each.owner, each.spent) for each in store.told] == [("ann", 100), ("bob", 100)]


def test_a_window_that_the_store_has_confirmed_is_still_the_same_window() -> None:
    budget = SharedTokenBudget(1000, 60)
    budget.spend("ann", 100, 1000.0)
    end = budget.ends("ann", 1000.0)
    told = budget.fill(Holding(owner="ann", number=1), 1000.2)
    assert (told.spent, told.window, told.remaining) == (100, 0, 59_800)
    budget.learn("ann", Others(refusals=[], window=77_000, remaining=59_790, spent=50), 1000.2)
    assert budget.ends("ann", 1000.3) == end
    assert budget.left("ann", 1000.3) == 850
    assert budget.fill(Holding(owner="ann", number=2), 1000.4).window == 77_000


def test_the_earlier_window_of_another_process_takes_over() -> None:
    budget = SharedTokenBudget(1000, 60)
    budget.spend("ann", 100, 1000.0)
    budget.learn("ann", Others(refusals=[], window=77_000, remaining=20_000, spent=50), 1000.0)
    assert budget.ends("ann", 1000.0) == 1020.0
    assert budget.left("ann", 1019.0) == 850
    assert budget.left("ann", 1021.0) == 1000
