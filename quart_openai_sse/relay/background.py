"""Background tasks, and tasks that may clean up when they are cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

from quart_openai_sse.errors import OpenAISSEError

T = TypeVar("T")

logger = logging.getLogger("quart_openai_sse")


class Background:
    """The background tasks of one engine."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()

    def hold(self, awaitable: Awaitable[Any]) -> None:
        """Runs *awaitable* as a task, and keeps a reference to it until it is done."""
        task = asyncio.ensure_future(awaitable)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    async def wait(self, timeout: float) -> None:
        """Returns when all are done, or after *timeout* seconds."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)

    def _over(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background task raised", exc_info=error)


async def run_abandonable(awaitable: Awaitable[T], *, patience: float, background: Background) -> T:
    """The result of *awaitable*, run in a task that has *patience* seconds to clean up if it is cancelled."""
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=patience)
        if not task.done():
            logger.warning("%r was cancelled, and does not end", task)
            background.hold(task)
        elif not task.cancelled():
            task.exception()  # retrieved: an exception during the clean-up does not count
        raise
    if task.cancelled():
        raise OpenAISSEError("The producer was cancelled.")
    return task.result()
