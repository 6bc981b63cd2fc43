"""What every `SharedCounts` must do. A test class inherits it and defines the fixture `new_counts`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from quart_openai_sse.limits import Holding, Others, SharedCounts, Wish

NewCounts = Callable[..., SharedCounts]
STREAM = Wish(streams=1, most_streams=7)
READER = Wish(stream="a", most_stream_readers=2, most_readers=3)


def tokens(prompt: int, answer: int = 0, *, instead: int = 0) -> Wish:
    return Wish(prompt=prompt, tokens=prompt + answer, instead=instead)


class Process:
    """A process that tells one owner's holdings."""

    def __init__(self, counts: SharedCounts, owner: str = "ann") -> None:
        self.counts = counts
        self.owner = owner
        self.number = 0
        self.dead: tuple[str, ...] = ()

    async def tell(self, *wishes: Wish, **held: Any) -> Others:
        self.number += 1
        holding = Holding(owner=self.owner, number=self.number, wishes=wishes, dead=self.dead, **held)
        [others] = await self.counts.count([holding])
        return others

    async def bury(self, other: Others) -> None:
        """Takes the holders that are not alive for dead, as `Sharing` does."""
        self.dead = tuple(other.holders - (await self.counts.renew()).alive)


class SharedCountsContract:
    """The rules, one test each."""

    @pytest.fixture
    async def new_process(self, new_counts: NewCounts) -> AsyncIterator[Callable[..., Awaitable[Process]]]:
        made: list[SharedCounts] = []

        async def create(owner: str = "ann", **options: Any) -> Process:
            counts = new_counts(**options)
            made.append(counts)
            await counts.renew()
            return Process(counts, owner)

        yield create
        for counts in made:
            await counts.aclose()

    @pytest.mark.parametrize("at_once", [15, 200])
    async def test_of_wishes_at_once_as_many_are_granted_as_the_limit_allows(
        self, new_process: Any, at_once: int
    ) -> None:
        processes = [await new_process() for _ in range(min(at_once, 50))]
        each = at_once // len(processes)
        answers = await asyncio.gather(*(process.tell(*[STREAM] * each) for process in processes))
        found = Counter(refusal for others in answers for refusal in others.refusals)
        assert found == {"": 7, "streams": at_once - 7}

    async def test_the_holdings_of_several_owners_go_together(self, new_process: Any) -> None:
        process = await new_process()
        holdings = [Holding(owner=f"{number}", number=1, wishes=[STREAM] * number) for number in range(10)]
        answers = await process.counts.count(holdings)
        assert [others.refusals.count("") for others in answers] == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7]

    async def test_what_is_told_twice_counts_once_and_what_is_given_back_is_free(self, new_process: Any) -> None:
        first, second = await new_process(), await new_process()
        for _ in range(3):
            await first.tell(streams=6)
        assert (await second.tell(STREAM, STREAM)).refusals == ["", "streams"]
        await first.tell(streams=0)
        assert (await second.tell(*[STREAM] * 7, streams=1)).refusals == [""] * 6 + ["streams"]

    async def test_readers_are_limited_by_stream_and_by_owner(self, new_process: Any) -> None:
        first, second = await new_process(), await new_process()
        other = Wish(stream="b", most_stream_readers=2, most_readers=3)
        assert (await first.tell(READER, reading={"a": 0})).refusals == [""]
        answer = await second.tell(READER, READER, other, other, reading={"a": 0, "b": 0})
        assert answer.refusals == ["", "stream_readers", "", "readers"]
        await first.tell(readers=0, reading={"a": 0})
        assert (await second.tell(READER, READER, readers=2, reading={"a": 1, "b": 1})).refusals == [
            "",
            "stream_readers",
        ]

    async def test_without_a_limit_everything_is_granted(self, new_process: Any) -> None:
        process = await new_process()
        wish = Wish(streams=1, stream="a", prompt=5, tokens=1000)
        assert (await process.tell(*[wish] * 20, reading={"a": 0})).refusals == [""] * 20

    async def test_a_wish_is_granted_as_a_whole_or_not_at_all(self, new_process: Any) -> None:
        first, second = await new_process(), await new_process()
        await first.tell(reading={"a": 2}, readers=2, streams=6)
        both = Wish(streams=1, most_streams=7, stream="a", most_stream_readers=2)
        assert (await second.tell(both, STREAM, STREAM, reading={"a": 0})).refusals == ["stream_readers", "", "streams"]

    async def test_owners_do_not_share_a_limit(self, new_process: Any) -> None:
        first, second = await new_process("ann"), await new_process("bob")
        await first.tell(streams=7)
        assert (await second.tell(STREAM)).refusals == [""]

    # Tokens -----------------------------------------------------------------------------------------------------------

    async def test_tokens_that_others_have_spent_or_reserved_are_not_there(self, new_process: Any) -> None:
        first, second = await new_process(), await new_process()
        await first.tell(spent=300, remaining=60_000, reserved=200, most_tokens=1000)
        answer = await second.tell(tokens(501), tokens(400, 900), tokens(1), most_tokens=1000, remaining=60_000)
        assert answer.refusals == ["tokens", "", "tokens"]
        assert (answer.spent, answer.reserved) == (300, 200)
        assert 0 < answer.remaining <= 60_000
        await first.tell(spent=1000, window=answer.window, most_tokens=1000)
        assert (await second.tell(tokens(1), most_tokens=1000, reserved=0)).refusals == ["tokens"]

    async def test_a_larger_estimate_may_take_what_the_stream_has_reserved(self, new_process: Any) -> None:
        first, second = await new_process(), await new_process()
        await first.tell(reserved=900, most_tokens=1000)
        wishes = tokens(150, instead=200), tokens(250, instead=200)
        assert (await second.tell(*wishes, reserved=200, most_tokens=1000)).refusals == ["", "tokens"]

    async def test_tokens_are_told_as_a_sum_and_never_counted_twice(self, new_process: Any) -> None:
        first, second = await new_process(), await new_process()
        for spent in (100, 100, 250, 250):
            window = (await first.tell(spent=spent, remaining=60_000, most_tokens=1000)).window
        assert (await second.tell(most_tokens=1000)).spent == 250
        await first.tell(spent=120, window=window, most_tokens=1000)
        assert (await second.tell(most_tokens=1000)).spent == 120

    async def test_tokens_stay_spent_when_their_process_is_gone(self, new_process: Any) -> None:
        first, second = await new_process(), await new_process()
        await first.tell(spent=100, reserved=500, remaining=60_000, most_tokens=1000)
        await first.counts.aclose()
        await second.bury(await second.tell(most_tokens=1000))
        answer = await second.tell(most_tokens=1000)
        assert (answer.spent, answer.reserved) == (100, 0)

    async def test_a_window_begins_with_the_first_token_and_its_tokens_end_with_it(self, new_process: Any) -> None:
        first, second = await new_process(), await new_process()
        assert (await second.tell(most_tokens=1000)).window == 0
        window = (await first.tell(spent=100, remaining=150, most_tokens=1000)).window
        async with asyncio.timeout(10):
            while (answer := await second.tell(most_tokens=1000)).spent:
                assert answer.window == window
        assert answer.window == 0
        late = await first.tell(tokens(1), spent=1000, window=window, remaining=60_000, most_tokens=1000)
        assert (late.window, late.refusals) == (0, [""])
        await first.tell(most_tokens=1000)
        later = await second.tell(spent=7, remaining=60_000, most_tokens=1000)
        assert later.window > window
        assert (await first.tell(spent=100, window=window, most_tokens=1000)).spent == 7

    async def test_of_two_windows_the_earlier_one_counts(self, new_process: Any) -> None:
        first, second = await new_process(), await new_process()
        late = (await first.tell(spent=1, remaining=60_000, most_tokens=10)).window
        early = late - 20_000
        assert (await second.tell(spent=2, window=early, most_tokens=10)).window == early
        answer = await first.tell(spent=1, window=late, most_tokens=10)
        assert (answer.window, answer.spent) == (early, 2)

    # Leases -----------------------------------------------------------------------------------------------------------

    async def test_what_a_dead_process_holds_is_free_when_its_lease_is_over(self, new_process: Any) -> None:
        dead, process = await new_process(lease=0.3), await new_process(lease=0.3)
        await dead.tell(streams=7, readers=3, reading={"a": 2}, reserved=500, most_tokens=1000)
        assert (await process.tell(STREAM)).refusals == ["streams"]
        wish = Wish(streams=1, most_streams=7, stream="a", most_stream_readers=2, most_readers=3, prompt=9, tokens=900)
        async with asyncio.timeout(10):
            while (answer := await process.tell(wish, reading={"a": 0}, most_tokens=1000)).refusals != [""]:
                await process.bury(answer)
        assert answer.reserved == 0

    async def test_a_process_that_was_taken_for_dead_counts_again_when_it_comes_back(self, new_process: Any) -> None:
        frozen, process = await new_process(lease=0.3), await new_process(lease=0.3)
        await frozen.tell(streams=7)
        async with asyncio.timeout(10):
            while (answer := await process.tell(STREAM)).refusals != [""]:
                await process.bury(answer)
        process.dead = ()
        assert not (await frozen.counts.renew()).known
        await frozen.tell(streams=7)
        assert (await process.tell(STREAM, streams=1)).refusals == ["streams"]

    async def test_a_lease_that_is_renewed_is_known_and_its_process_alive(self, new_process: Any) -> None:
        first, second = await new_process(), await new_process()
        leases = await first.counts.renew()
        assert leases.known
        assert leases.alive == (await second.counts.renew()).alive
        assert len(leases.alive) == 2
        await second.counts.aclose()
        assert len((await first.counts.renew()).alive) == 1
