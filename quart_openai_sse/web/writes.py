"""The time that one write of a streamed response may take."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context

logger = logging.getLogger("quart_openai_sse")

_CHECKS = 4  # in one timeout


class WriteWatch:
    """Cuts off a response if its client does not accept a write within *timeout* seconds, or a quarter more.

    A server waits while a client does not read, and only the response's task can be stopped from outside. One timer
    looks at the number of writes from time to time, so that a write costs nothing. `stop` ends it, and so does the end
    of the task.
    """

    def __init__(self, task: asyncio.Task[object], timeout: float) -> None:
        self.writes = 0
        """Increased by one before and after each write: it is odd while a write waits for the client."""
        self._task = task
        self._interval = timeout / _CHECKS
        self._seen = 0
        self._in_a_row = 0
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._interval, self._check, context=Context())

    def stop(self) -> None:
        """Stops the timer. May be called twice."""
        self._timer.cancel()

    def _check(self) -> None:
        waits = self.writes % 2 == 1 and self.writes == self._seen
        self._in_a_row = self._in_a_row + 1 if waits else 0
        self._seen = self.writes
        if self._task.done():  # the body never began
            return
        if self._in_a_row < _CHECKS:
            self._timer = self._loop.call_later(self._interval, self._check, context=Context())
        else:
            logger.warning("a client has not accepted a write in time, and its response is cut off")
            self._task.cancel()
