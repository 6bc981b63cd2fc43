"""The limits of a principal: tokens in a window, streams at the same time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse import StreamEnd
from quart_openai_sse.limits.tokens import TokenBudget
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read
from tests.conftest import BOB, QUESTION, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def test_tokens_are_spent_and_there_again_after_the_window() -> None:
    budget = TokenBudget(10, 60)
    budget.spend("ann", 4, 0)
    budget.spend("ann", 7, 30)
    assert (budget.left("ann", 59), budget.resets("ann", 59), budget.left("bob", 59)) == (-1, 1, 10)
    assert (budget.left("ann", 60), budget.resets("ann", 60)) == (10, 60)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-3, 10), st.floats(0, 40)), max_size=60))
def test_the_limit_minus_the_tokens_of_this_window_is_left(steps: list[tuple[str, int, float]]) -> None:
    budget, now = TokenBudget(20, 60), 0.0
    windows: dict[str, tuple[float, int]] = {}
    for who, tokens, pause in steps:
        now += pause
        until, spent = windows.get(who, (0.0, 0))
        if until <= now:
            until, spent = now + 60, 0
        windows[who] = until, max(0, spent + tokens)
        budget.spend(who, tokens, now)
        assert budget.left(who, now) == 20 - windows[who][1]


def test_a_key_is_forgotten_after_its_window() -> None:
    budget = TokenBudget(10, 60)
    for number in range(1000):
        budget.spend(number, 1, float(number))
    assert len(budget._spent) <= 61


# Through the app ----------------------------------------------------------------------------------------------------


async def client_of(create_app: CreateApp, serve: Serve, upstream: Any, **options: Any) -> tuple[Any, list[StreamEnd]]:
    app, ai = create_app(upstream, **options)
    ends: list[StreamEnd] = []
    ai.on_end(ends.append)
    return await serve(app), ends


async def test_a_stream_fails_where_the_tokens_end_and_the_next_one_is_refused(
    create_app: CreateApp, serve: Serve
) -> None:
    upstream = ScriptedUpstream([*[chunk(f"{number} ") for number in range(100)], asyncio.Event().wait])
    client, ends = await client_of(create_app, serve, upstream, tokens_per_principal=20, token_window=600)
    response = await client.post("/v1/chat/completions", json=BODY)
    stream = await read(response.content)
    # The prompt has 20 characters, 5 tokens; the stream ends with the chunk that exceeds the limit.
    assert (response.status_code, stream.error["code"], len(stream.text.split())) == (200, "tokens_spent", 16)
    assert (ends[0].outcome, upstream.running) == ("failed", 0)
    response = await client.post("/v1/chat/completions", json=BODY)
    assert (response.status_code, response.json()["error"]["type"]) == (429, "insufficient_quota")
    assert response.headers["x-should-retry"] == "false"
    assert 0 < int(response.headers["Retry-After"]) <= 600
    assert (await client.post("/v1/chat/completions", json=BODY, headers=BOB)).status_code == 200
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("streaming", [True, False])
async def test_usage_counts_if_there_is_any_and_does_not_take_a_finished_answer_away(
    create_app: CreateApp, serve: Serve, streaming: bool
) -> None:
    upstream = ScriptedUpstream([chunk("one"), chunk(" two"), finish(usage=USAGE)])
    client, ends = await client_of(create_app, serve, upstream, tokens_per_principal=18)
    for _ in range(2):
        response = await client.post("/v1/chat/completions", json={**BODY, "stream": streaming})
        assert response.status_code == 200
    assert [end.outcome for end in ends] == ["completed", "completed"]  # 10 and 10
    assert (await client.post("/v1/chat/completions", json=BODY)).json()["error"]["code"] == "tokens_spent"


async def test_two_hundred_at_once_are_exactly_as_many_as_are_allowed(create_app: CreateApp, serve: Serve) -> None:
    gate = asyncio.Event()
    upstream = ScriptedUpstream([chunk("hi"), gate.wait, finish()])
    client, _ = await client_of(create_app, serve, upstream, max_streams_per_principal=20)
    starting = [asyncio.ensure_future(client.post("/v1/streams", json=BODY)) for _ in range(200)]
    statuses = [(await each).status_code for each in starting]
    assert (statuses.count(201), statuses.count(429)) == (20, 180)
    listed = (await client.get("/v1/streams")).json()["data"]
    assert (len(listed), upstream.running) == (20, 20)
    for each in listed[:5]:
        await client.delete(each["url"])
    while upstream.running > 15:
        await asyncio.sleep(0)
    starting = [asyncio.ensure_future(client.post("/v1/streams", json=BODY)) for _ in range(50)]
    assert [(await each).status_code for each in starting].count(201) == 5
    gate.set()
