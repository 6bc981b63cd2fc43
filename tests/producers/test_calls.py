"""A model's requests upstream, at the end of its stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from quart_openai_sse.errors import StreamStopped
from quart_openai_sse.testing import ScriptedUpstream
from tests.producers.relays import read_all, relay_of, start


async def asks_with_async_for(chat: Any) -> None:
    async for _ in chat.call("second", chat.messages):
        pass


async def asks_with_await(chat: Any) -> None:
    await chat.call("second", chat.messages)


async def asks_in_a_task_group(chat: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asks_with_await(chat))


async def asks_again_and_again(chat: Any) -> None:
    for _ in range(3):
        with contextlib.suppress(asyncio.CancelledError):
            await chat.call("second", chat.messages)


async def refuses(items: Any, chat: Any) -> Any:
    async for _ in items:
        raise StreamStopped("policy")
    yield


@pytest.mark.parametrize("ask", [asks_with_async_for, asks_with_await, asks_in_a_task_group, asks_again_and_again])
@pytest.mark.parametrize("ending", ["a transform", "the client disconnects"])
async def test_a_model_that_is_stopped_at_its_yield_asks_the_upstream_no_more(
    ask: Callable[[Any], Any], ending: str
) -> None:
    at_yield, seen, upstream = asyncio.Event(), [], ScriptedUpstream("first")

    async def own(chat: Any) -> Any:
        await chat.call("first", chat.messages)
        at_yield.set()
        yield "so far"
        seen.append("runs on")
        await ask(chat)

    transforms = [refuses] if ending == "a transform" else []
    async with asyncio.timeout(30), relay_of(own, upstream, transforms=transforms) as relay:
        _, reader = await start(relay)
        await at_yield.wait()
        if ending == "a transform":
            assert await read_all(reader) == ("", "stopped policy")
        await relay.readers.leave(reader)  # the model waits for it: there is no room in the log
    assert [request["model"] for request in upstream.requests] == ["first"]
    assert seen == ["runs on"]


async def test_a_call_in_a_finally_block_is_not_sent_after_the_end() -> None:
    upstream = ScriptedUpstream("first")

    async def own(chat: Any) -> Any:
        try:
            yield "so far"
            await asyncio.Event().wait()
        finally:
            await chat.call("summary", chat.messages)

    async def finish(items: Any, chat: Any) -> Any:
        yield await anext(items)
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}

    async with asyncio.timeout(30), relay_of(own, upstream, transforms=[finish]) as relay:
        _, reader = await start(relay)
        assert await read_all(reader) == ("so far", "completed")
        await relay.readers.leave(reader)
    assert upstream.requests == []
