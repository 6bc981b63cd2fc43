"""What an app has open across a `yield`, and what ends it while the stream waits for its reader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from tests.producers.relays import read_all, relay_of, start


class Opened:
    """The timeout, task group or cancel scope of one test. *end* ends it."""

    end: Callable[[], object]

    def __init__(self) -> None:
        self.at_yield = asyncio.Event()

    def timeout(self) -> asyncio.Timeout:
        timeout = asyncio.timeout(None)
        self.end = lambda: timeout.reschedule(0)
        return timeout

    def scope(self) -> anyio.CancelScope:
        scope = anyio.CancelScope()
        self.end = scope.cancel
        return scope

    async def child(self) -> None:
        """A task of a group, which ends it by an exception."""
        ending = asyncio.Event()
        self.end = ending.set
        await ending.wait()
        raise ValueError("a mistake of the app")


async def outcome_of(model: Any, opened: Opened, *transforms: Any) -> tuple[str, str]:
    """The text and the outcome of a stream, whose reader reads only after *opened* was ended."""
    async with asyncio.timeout(30), relay_of(model, transforms=transforms) as relay:
        _, reader = await start(relay)
        await opened.at_yield.wait()
        await asyncio.sleep(0)  # the child of a task group begins
        opened.end()
        for _ in range(5):  # turns of the event loop: the cancellation is delivered
            await asyncio.sleep(0)
        outcome = await read_all(reader)
        await relay.readers.leave(reader)
        return outcome


async def passes(items: Any, chat: Any) -> Any:
    async for item in items:
        yield item


def model_with_timeout(opened: Opened) -> Any:
    async def own(chat: Any) -> Any:
        try:
            async with opened.timeout():
                opened.at_yield.set()
                yield "so far, "
                await asyncio.Event().wait()
        except TimeoutError:
            yield "late"

    return own


def model_with_task_group(opened: Opened) -> Any:
    async def own(chat: Any) -> Any:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(opened.child())
                opened.at_yield.set()
                yield "so far, "
                await asyncio.Event().wait()
        except* ValueError:
            yield "late"

    return own


def model_with_scope(opened: Opened) -> Any:
    async def own(chat: Any) -> Any:
        with opened.scope():
            opened.at_yield.set()
            yield "so far, "
            await asyncio.Event().wait()
        yield "late"

    return own


@pytest.mark.parametrize("create", [model_with_timeout, model_with_task_group, model_with_scope])
@pytest.mark.parametrize("transforms", [(), (passes,), (passes, passes)], ids=["alone", "a transform", "two"])
async def test_it_ends_at_the_models_yield(create: Any, transforms: Any) -> None:
    opened = Opened()
    assert await outcome_of(create(opened), opened, *transforms) == ("so far, late", "completed")


async def test_an_exception_that_the_model_does_not_handle_is_the_models_timeout() -> None:
    opened = Opened()

    async def own(chat: Any) -> Any:
        async with opened.timeout():
            opened.at_yield.set()
            yield "so far"
            await asyncio.Event().wait()

    assert await outcome_of(own, opened) == ("so far", "failed model_timeout")


async def test_a_cancellation_that_no_one_handles_fails_the_stream() -> None:
    opened, closed = Opened(), []

    async def own(chat: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        opened.end = task.cancel
        try:
            opened.at_yield.set()
            yield "so far"
        except asyncio.CancelledError:
            closed.append("at the yield")
            raise

    assert await outcome_of(own, opened) == ("so far", "failed internal_error")
    assert closed == ["at the yield"]


async def says_two_words(chat: Any) -> Any:
    yield "one "
    await asyncio.sleep(0)
    yield "two"


@pytest.mark.parametrize("wait", ["for the next item", "for something else"])
async def test_it_ends_in_a_transform(wait: str) -> None:
    opened = Opened()

    async def limit(items: Any, chat: Any) -> Any:
        try:
            async with opened.timeout():
                opened.at_yield.set()
                yield await anext(items)
                await (anext(items) if wait == "for the next item" else asyncio.Event().wait())
        except TimeoutError:
            yield "late"
            yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}

    assert await outcome_of(says_two_words, opened, limit) == ("one late", "completed")


async def test_a_timeout_that_a_transform_leaves_without_a_wait_cancels_nothing() -> None:
    opened = Opened()

    async def limit(items: Any, chat: Any) -> Any:
        async for item in items:
            async with opened.timeout():
                opened.at_yield.set()
                yield item

    assert await outcome_of(says_two_words, opened, limit) == ("one two", "completed")


async def forever(chat: Any) -> Any:
    yield "one "
    await asyncio.Event().wait()


async def test_a_task_group_ends_in_a_transform_whose_task_iterates_over_the_items() -> None:
    opened = Opened()

    async def pump(items: Any, chat: Any) -> Any:
        queue: asyncio.Queue[Any] = asyncio.Queue()

        async def fill() -> None:
            async for item in items:
                await queue.put(item)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fill())
                group.create_task(opened.child())
                item = await queue.get()
                opened.at_yield.set()
                yield item
                await asyncio.Event().wait()
        except* ValueError:
            yield "late"
            yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}

    assert await outcome_of(forever, opened, pump) == ("one late", "completed")
