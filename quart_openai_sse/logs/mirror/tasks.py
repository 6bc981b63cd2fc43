"""The tasks of a stream log, which end with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

from quart_openai_sse.errors import LogUnavailable, StreamExpired, StreamNotFound

logger = logging.getLogger("quart_openai_sse")

T = TypeVar("T")


class Tasks:
    """The tasks that run. An instance is a `Spawn`."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coroutine, context=Context())
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel(self) -> None:
        """Cancels all but the task that calls it."""
        for _ in range(3):  # on Python 3.11 a task can miss a cancellation that comes with what it waits for
            for task in (tasks := [task for task in self._running if task is not asyncio.current_task()]):
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=0.2)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        # The others are of a mirror that could not be opened: those who asked for it have raised them.
        if error is not None and not isinstance(error, LogUnavailable | StreamNotFound | StreamExpired):
            logger.error("a task of the stream log failed", exc_info=error)
