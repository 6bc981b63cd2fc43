"""Calls of the store that are made again until it can be reached, and the tasks in which that happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from quart_openai_sse.errors import LogUnavailable

T = TypeVar("T")


class Spawn(Protocol):
    """Runs a coroutine in a task that ends with the log."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> asyncio.Task[T]: ...


SOONEST, LATEST = 0.1, 2.0
"""Seconds after which a store that could not be reached is tried again: at first, and at most."""


async def until_answered(call: Callable[[], Awaitable[T]]) -> T:
    """What *call* returns, as soon as the store can be reached."""
    wait = SOONEST
    while True:
        try:
            return await call()
        except LogUnavailable:
            await asyncio.sleep(wait)
            wait = min(wait * 2, LATEST)


async def result_of(task: asyncio.Task[T]) -> T:
    """What a task returns that others may wait for too. Raises `LogUnavailable` if the log was closed meanwhile."""
    await asyncio.wait([task])
    if task.cancelled():
        raise LogUnavailable("The stream log was closed.")
    return task.result()
