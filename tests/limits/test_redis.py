"""Counts in a Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import BlockingConnectionPool, Redis

from quart_openai_sse.limits import Holding
from quart_openai_sse.limits.redis import RedisCounts
from tests.limits.counts_contract import STREAM, NewCounts, Process, SharedCountsContract, tokens


@pytest.fixture
async def client(redis_server: Path) -> AsyncIterator[Redis]:
    pool = BlockingConnectionPool.from_url(f"unix://{redis_server}", max_connections=20)
    async with Redis(connection_pool=pool) as client:
        yield client
    await pool.aclose()


class TestCounts(SharedCountsContract):
    @pytest.fixture
    def new_counts(self, client: Redis) -> NewCounts:
        def create(**options: Any) -> RedisCounts:
            return RedisCounts(client, **options)

        return create


async def test_a_holding_that_arrives_after_a_later_one_changes_nothing(client: Redis) -> None:
    first, second = Process(RedisCounts(client)), Process(RedisCounts(client))
    for process in (first, second):
        await process.counts.renew()
    first.number = 5
    await first.tell(streams=2, reserved=100, most_tokens=1000, reading={"a": 1}, readers=1)
    first.number = 3  # sent earlier, and delayed by a connection that was given up
    await first.tell(STREAM, streams=6, reserved=900, spent=800, remaining=9000, most_tokens=1000, reading={"a": 9})
    answer = await second.tell(*[STREAM] * 6, tokens(899), most_tokens=1000)
    assert answer.refusals == [""] * 5 + ["streams", ""]
    assert (answer.spent, answer.reserved) == (0, 100)
    first.number = 6
    await first.tell(streams=0, most_tokens=1000, reading={"a": 0})
    first.number = 5
    await first.tell(streams=7, most_tokens=1000, reading={"a": 0})
    assert (await second.tell(STREAM, streams=6)).refusals == [""]


async def test_scripts_that_the_server_has_forgotten_are_sent_again(client: Redis) -> None:
    process = Process(RedisCounts(client))
    await process.counts.renew()
    await process.tell(STREAM)
    await client.script_flush()
    await process.counts.renew()
    await client.script_flush()
    assert (await process.tell(STREAM, streams=1)).refusals == [""]
    await client.script_flush()
    holdings = [Holding(owner=owner, number=9, streams=6, wishes=[STREAM] * 2) for owner in ("bob", "eve", "dan")]
    answers = await process.counts.count(holdings)
    assert [others.refusals for others in answers] == [["", "streams"]] * 3


async def test_the_keys_of_an_owner_share_a_slot_and_every_key_expires(client: Redis) -> None:
    process = Process(RedisCounts(client, prefix="mine"))
    await process.counts.renew()
    await process.tell(streams=1, readers=1, reading={"a": 1}, spent=5, remaining=9000, most_tokens=1000)
    keys = {key.decode() for key in await client.keys()}
    assert keys == {"mine:1:limits:processes", "mine:1:limits:{ann}", "mine:1:limits:{ann}:a"}
    assert all([0 < await client.pttl(key) <= 3_600_000 for key in keys])


async def test_the_client_of_an_app_may_decode_what_it_receives(redis_server: Path) -> None:
    async with Redis.from_url(f"unix://{redis_server}", decode_responses=True) as client:
        first, second = Process(RedisCounts(client)), Process(RedisCounts(client))
        assert not (await first.counts.renew()).known
        await second.counts.renew()
        await first.tell(streams=6)
        answer = await second.tell(STREAM, STREAM)
        assert answer.refusals == ["", "streams"]
        assert answer.holders < (await second.counts.renew()).alive
