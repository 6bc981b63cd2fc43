"""Tasks that nobody waits for: held, so that they are not lost, and what they raise is logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

logger = logging.getLogger("quart_openai_sse")


class Background:
    """The tasks of one engine that go on by themselves."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()

    def hold(self, awaitable: Awaitable[Any]) -> None:
        """Keeps it until it is over."""
        task = asyncio.ensure_future(awaitable)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    async def wait(self, timeout: float) -> None:
        """Returns when all are over, or after *timeout* seconds."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)

    def _over(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background task raised", exc_info=error)
