"""Slots for running streams."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse.errors import TooManyStreams
from quart_openai_sse.limits.streams import Slots
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish
from tests.conftest import BOB, QUESTION, CreateApp, Serve

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_nobody_gets_more_slots_than_there_are_in_all() -> None:
    slots = Slots(2)
    slots.take("ann", at_most=None)
    slots.take("bob", at_most=None)
    with pytest.raises(TooManyStreams, match="Too many streams are running"):
        slots.take("cid", at_most=None)
    slots.give_back("ann")
    slots.take("cid", at_most=None)
    assert slots.taken == 2


def test_an_owner_gets_no_more_than_its_own_limit() -> None:
    slots = Slots(10)
    slots.take("ann", at_most=1)
    with pytest.raises(TooManyStreams, match="You have too many streams running"):
        slots.take("ann", at_most=1)
    slots.take("bob", at_most=1)
    slots.give_back("ann")
    slots.take("ann", at_most=1)
    assert slots.taken == 2


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_what_is_taken_and_given_back_is_never_more_nor_less(steps: Sequence[tuple[str, bool]]) -> None:
    slots, mine = Slots(5), {"a": 0, "b": 0, "c": 0}
    for owner, takes in steps:
        if not takes:
            if mine[owner]:
                slots.give_back(owner)
                mine[owner] -= 1
            continue
        allowed = sum(mine.values()) < 5 and mine[owner] < 2
        try:
            slots.take(owner, at_most=2)
        except TooManyStreams:
            assert not allowed
        else:
            assert allowed
            mine[owner] += 1
        assert slots.taken == sum(mine.values())


async def test_a_full_server_says_so_also_to_a_caller_without_tokens(create_app: CreateApp, serve: Serve) -> None:
    forever = asyncio.Event()
    upstream = ScriptedUpstream([chunk("hi"), finish(usage=USAGE)], [chunk("hi"), forever.wait])
    client = await serve(create_app(upstream, tokens_per_principal=6, max_streams=1)[0])
    body = {"model": "m", "messages": QUESTION, "stream": True}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    spent = await client.post("/v1/chat/completions", json=body)
    assert spent.json()["error"]["code"] == "tokens_spent"
    started = await client.post("/v1/streams", json=body, headers=BOB)
    assert started.status_code == 201
    refused = await client.post("/v1/chat/completions", json=body)
    assert refused.json()["error"]["code"] == "too_many_streams"
    await client.delete(started.json()["url"], headers=BOB)
