"""The tokens of streams: estimates at their start, charges while they run, and races for the last ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse import Principal
from quart_openai_sse.config import Config
from quart_openai_sse.errors import ErrorValue, TokensSpent, UpstreamRefused
from quart_openai_sse.limits.tokens import TokenBudget
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.relay.hooks import Hooks
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.spending import Spending
from quart_openai_sse.testing import Gate, ScriptedUpstream, chunk, finish, refused
from tests.conftest import Clock

ME = Principal("ann")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("quart_openai_sse.relay.spending.monotonic", clock)
    return clock


def asks(characters: int, **members: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": "x" * characters}], "stream": True, **members}


def usage(total: int) -> dict[str, int]:
    return {"prompt_tokens": total - 1, "completion_tokens": 1, "total_tokens": total}


class Stream:
    """A stream with an estimate of its own, without any server."""

    def __init__(self, budget: TokenBudget, body: dict[str, Any]) -> None:
        self.spending = Spending(budget, "ann", attachment=1000, reserve=1000)
        self.spending.estimate(body)
        self.completion = Completion()
        self.spending.follow(self.completion).begin()
        self.chunks = 0

    def feed(self, chunks: int) -> None:
        for _ in range(chunks):
            self.completion.feed(json.encode({"choices": [{"index": 0, "delta": {"content": "x"}}]}))
            self.chunks += 1
            self.spending.charge(self.chunks)

    def complete(self, total: int) -> int:
        choices = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
        self.completion.feed(json.encode({"choices": choices, "usage": usage(total)}))
        return self.spending.settle(completed=True, chunks=self.chunks)


# Without any server -----------------------------------------------------------------------------------------------


def test_a_stream_counts_with_its_estimate_until_it_has_cost_more_or_has_ended() -> None:
    budget = TokenBudget(10_000, 60)
    stream = Stream(budget, asks(400, max_tokens=50))
    assert (budget.left("ann", 0), budget.reserved("ann")) == (10_000, 150)
    stream.feed(20)
    assert (stream.spending.settle(chunks=20), budget.reserved("ann")) == (120, 0)
    other = Stream(budget, asks(400, max_tokens=50))
    other.feed(80)
    assert budget.reserved("ann") == 0
    assert other.complete(30) == 30


@pytest.mark.parametrize(
    ("body", "retry_after", "should_retry", "told"),
    [
        (asks(4 * 1001), None, False, "too long"),  # no window is long enough
        (asks(4 * 600), 40, False, "used up for now"),
        (asks(4 * 300), 5, True, "in a few seconds"),
    ],
    ids=["more than the limit", "more than is left", "reserved by another stream"],
)
def test_a_start_that_does_not_fit_says_when_it_may(
    clock: Clock, body: dict[str, Any], retry_after: float | None, should_retry: bool, told: str
) -> None:
    budget = TokenBudget(1000, 60)
    Stream(budget, asks(4)).complete(500)
    clock.now += 20
    Stream(budget, asks(4, max_tokens=300))
    with pytest.raises(TokensSpent) as refused:
        Stream(budget, body)
    assert (refused.value.retry_after, refused.value.should_retry) == (retry_after, should_retry)
    assert told in refused.value.user_message


def test_a_first_request_may_reserve_more_than_the_limit() -> None:
    budget = TokenBudget(50, 60)
    stream = Stream(budget, asks(40, max_tokens=10**12))
    assert budget.reserved("ann") == 60
    with pytest.raises(TokensSpent):
        Stream(budget, asks(4))
    stream.complete(20)
    Stream(budget, asks(4))


def test_what_a_hook_adds_to_the_prompt_must_fit_too() -> None:
    budget = TokenBudget(1000, 60)
    spending = Spending(budget, "ann", attachment=1000, reserve=1000)
    spending.estimate(asks(400, max_tokens=10))
    spending.estimate(asks(800, max_tokens=20))
    assert budget.reserved("ann") == 220
    with pytest.raises(TokensSpent):
        spending.estimate(asks(4004))
    spending.settle()
    assert (budget.reserved("ann"), budget.left("ann", 0)) == (0, 1000)


def test_a_stream_that_was_admitted_is_not_refused_for_what_another_has_reserved_since() -> None:
    budget = TokenBudget(1000, 60)
    stream = Stream(budget, asks(400, max_tokens=10))
    Stream(budget, asks(400))
    stream.spending.estimate(asks(396, max_tokens=10))


def test_a_hook_may_lengthen_a_prompt_by_what_its_stream_has_reserved(clock: Clock) -> None:
    budget = TokenBudget(1000, 60)
    stream = Stream(budget, asks(400, max_tokens=400))
    Stream(budget, asks(400))  # whose answer may take the rest
    stream.spending.estimate(asks(2000, max_tokens=10))
    with pytest.raises(TokensSpent):  # more than it has reserved
        stream.spending.estimate(asks(2044, max_tokens=10))


def test_a_stream_is_ended_by_what_is_spent_and_not_by_what_others_reserve() -> None:
    budget = TokenBudget(100, 60)
    stream = Stream(budget, asks(40, max_tokens=5))
    Stream(budget, asks(40))
    stream.feed(80)
    budget.spend("ann", 10, 0)
    with pytest.raises(TokensSpent):
        stream.feed(1)


def test_what_settles_after_its_window_gives_nothing_back_to_the_next_one(clock: Clock) -> None:
    budget = TokenBudget(1000, 60)
    stream = Stream(budget, asks(4 * 600))
    stream.feed(10)
    assert budget.left("ann", clock.now) == 390
    clock.now += 60
    Stream(budget, asks(4)).complete(200)
    assert stream.complete(50) == 50
    assert budget.left("ann", clock.now) == 800


def test_what_is_charged_in_the_next_window_can_be_given_back_to_that(clock: Clock) -> None:
    budget = TokenBudget(1000, 60)
    stream = Stream(budget, asks(4 * 100))
    stream.feed(10)
    clock.now += 60
    stream.feed(30)
    assert budget.left("ann", clock.now) == 970
    assert stream.complete(5) == 5
    assert budget.left("ann", clock.now) == 1000


def test_a_start_that_was_refused_upstream_is_charged_nothing() -> None:
    budget = TokenBudget(1000, 60)
    stream = Stream(budget, asks(400))
    error = ErrorValue.of(UpstreamRefused("no", status=503))
    assert stream.spending.settle(error=error) == 0
    assert (budget.left("ann", 0), budget.reserved("ann")) == (1000, 0)


STEPS = st.lists(
    st.tuples(st.integers(0, 300), st.integers(1, 100), st.integers(0, 120), st.integers(-1, 200), st.integers(0, 90)),
    max_size=20,
)


@given(STEPS)
def test_nothing_stays_reserved_and_the_spent_tokens_are_those_that_were_charged(
    steps: list[tuple[int, int, int, int, int]],
) -> None:
    budget, running, charged = TokenBudget(500, 1e9), [], 0
    for prompt, limit, chunks, total, end in steps:
        try:
            running.append(Stream(budget, asks(4 * prompt, max_tokens=limit)))
        except TokensSpent:
            continue
        for _ in range(end // 30):  # some end, the others run on
            stream = running.pop()
            with suppress(TokensSpent):
                stream.feed(chunks)
            charged += stream.complete(total) if total > 0 else stream.spending.settle(chunks=stream.chunks)
            if not running:
                break
    for stream in running:
        charged += stream.spending.settle(chunks=stream.chunks)
    assert budget.reserved("ann") == 0
    assert 500 - budget.left("ann", 1.0) == charged


# In an engine -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def relays() -> AsyncIterator[Any]:
    made = []

    def create(upstream: ScriptedUpstream, **options: Any) -> Relay:
        config = Config(base_url="http://127.0.0.1:9/v1", max_streams_per_principal=1000, **options)
        relay = Relay(config=config, log=MemoryLog(), create_upstream=lambda: upstream, hooks=Hooks())
        made.append(relay)
        return relay

    yield create
    for relay in made:
        await relay.aclose()


async def start(relay: Relay, body: dict[str, Any], **options: Any) -> Any:
    """The handle of a stream, or its refusal."""
    try:
        return await relay.start(body, principal=ME, **options)
    except TokensSpent as refusal:
        return refusal


async def end_of(relay: Relay, handle: Any) -> Any:
    reader, end = await relay.read(handle), None
    async for batch in reader:
        end = batch.end
    await relay.readers.leave(reader)
    return end


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("count", [15, 200])
async def test_starts_at_once_pass_the_budget_by_one_request_at_most(relays: Any, streaming: bool, count: int) -> None:
    gate = Gate()
    upstream = ScriptedUpstream([gate, chunk("Hi"), finish(usage=usage(99))])
    relay = relays(upstream, tokens_per_principal=1000)
    body = asks(4 * 90, stream=streaming, max_tokens=9)  # 99
    started = await asyncio.gather(*(start(relay, body) for _ in range(count)))
    handles = [each for each in started if not isinstance(each, TokensSpent)]
    assert len(handles) == 10  # 990: 10 tokens are left, and the prompt has 90
    gate.open()
    assert {(await end_of(relay, each)).outcome for each in handles} == {"completed"}
    assert isinstance(await start(relay, body), TokensSpent)
    assert (await end_of(relay, await start(relay, asks(20, max_tokens=90)))).outcome == "completed"
    assert isinstance(await start(relay, asks(4)), TokensSpent)
    assert len(upstream.requests) == 11


async def test_answers_without_a_limit_are_started_while_their_reserve_fits(relays: Any) -> None:
    gate = Gate()
    relay = relays(ScriptedUpstream([gate, finish()]), tokens_per_principal=5000)
    started = await asyncio.gather(*(start(relay, asks(400)) for _ in range(200)))
    assert sum(not isinstance(each, TokensSpent) for each in started) == 5  # 1100 each: the fifth goes beyond
    gate.open()


async def test_a_place_that_is_given_back_is_there_for_the_next_start(relays: Any) -> None:
    gate = Gate()
    relay = relays(ScriptedUpstream([gate, chunk("Hi"), finish(usage=usage(100))]), tokens_per_principal=1000)
    first = await start(relay, asks(4))
    refusal = await start(relay, asks(4))
    assert (refusal.retry_after, refusal.headers()["x-should-retry"]) == (5, "true")
    gate.open()
    await end_of(relay, first)
    assert (await end_of(relay, await start(relay, asks(4)))).outcome == "completed"


async def test_attaching_to_a_stream_costs_nothing(relays: Any) -> None:
    gate = Gate()
    relay = relays(ScriptedUpstream([gate, chunk("Hi"), finish(usage=usage(500))]), tokens_per_principal=1000)
    handles = await asyncio.gather(*(start(relay, asks(400), idempotency_key="k") for _ in range(20)))
    assert sorted(each.attached for each in handles) == [False] + [True] * 19
    gate.open()
    await end_of(relay, handles[0])
    assert (await start(relay, asks(400), idempotency_key="k")).attached
    assert (await start(relay, asks(4 * 499), idempotency_key="another")).attached is False


async def test_a_start_that_fails_gives_everything_back(relays: Any) -> None:
    relay = relays(ScriptedUpstream("Hello."), tokens_per_principal=1000, models=("scripted",))

    async def refuse(body: Any, principal: Principal) -> Any:
        raise ValueError("refused")

    relay.hooks.prepare.append(refuse)
    for _ in range(5):
        with pytest.raises(ValueError, match="refused"):
            await relay.start(asks(400), principal=ME)
    relay.hooks.prepare.clear()
    handle = await start(relay, asks(4 * 990))
    assert (await end_of(relay, handle)).outcome == "completed"


@pytest.mark.parametrize("status", [400, 503])
async def test_an_outage_leaves_the_budget_as_it_was(relays: Any, status: int) -> None:
    relay = relays(ScriptedUpstream(*[[refused(status)]] * 5, "Hello."), tokens_per_principal=1000)
    for outcome in ["failed"] * 5 + ["completed"]:
        assert (await end_of(relay, await start(relay, asks(4 * 900)))).outcome == outcome


async def test_the_prompt_that_prepare_leaves_is_the_one_that_counts(relays: Any) -> None:
    upstream = ScriptedUpstream([chunk("Hi"), finish()])
    relay = relays(upstream, tokens_per_principal=1000)
    system = {"role": "system", "content": "x" * 4 * 300}

    async def prepare(body: Any, principal: Principal) -> Any:
        return {**body, "messages": [system, *body["messages"]], "max_tokens": 10}

    relay.hooks.prepare.append(prepare)
    for _ in range(2):
        assert (await end_of(relay, await start(relay, asks(4 * 100)))).outcome == "completed"  # 402 each
    assert isinstance(await start(relay, asks(4)), TokensSpent)  # 301 with what the hook adds, and 196 are left
    assert len(upstream.requests) == 2
