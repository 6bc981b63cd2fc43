"""The deadlines of an upstream's answer: for the whole, for its first output, for each gap."""

from __future__ import annotations

import asyncio
import math
from contextvars import Context
from operator import itemgetter
from time import monotonic
from typing import Any, Protocol

from quart_openai_sse.errors import FirstOutputTimeout, GapTimeout, OpenAISSEError, TotalTimeout

Deadline = tuple[float, type[OpenAISSEError], str]
"""When it is met, by `time.monotonic`, and the error that is raised then with its message."""
_when = itemgetter(0)
_SHORTEST = 0.01
"""Seconds between two checks, at least: a gap of 0 seconds must not make a busy loop."""


class Progress(Protocol):
    """The progress of an answer."""

    fed: float
    """When data last arrived, by `time.monotonic`; 0 before the first time."""

    @property
    def started(self) -> bool:
        """Whether there was any output."""
        ...


class Deadlines:
    """An async context manager that raises `TotalTimeout`, `FirstOutputTimeout` or `GapTimeout`. Times are in seconds.

    Until *progress* has started, *first_output* holds, and afterwards *gap* for each silence. One timer checks the
    progress from time to time, so that data which arrives costs nothing; no deadline is met early.
    """

    def __init__(
        self,
        *,
        total: float,
        first_output: float = math.inf,
        gap: float = math.inf,
        progress: Progress | None = None,
    ) -> None:
        self._quiet_since = now = monotonic()
        self._total = now + total
        self._first_output = now + first_output
        self._gap = gap
        self._progress = progress
        self._paused = False
        self._met: Deadline
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Deadlines:
        await self._timeout.__aenter__()
        self._check()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._timeout.__aexit__(*exc_info)
        except TimeoutError:
            _, error, message = self._met
            raise error(message) from None

    def pause(self) -> None:
        """Stops the clock of gaps: the reader is slow, not the upstream."""
        self._paused = True

    def resume(self) -> None:
        """Starts the clock of gaps again."""
        self._paused = False
        self._quiet_since = monotonic()

    def _check(self) -> None:
        loop, now = asyncio.get_running_loop(), monotonic()
        when, *_ = self._met = self._next(now)
        if when <= now:
            self._timeout.reschedule(loop.time())
        else:  # and no later than the end of a gap that begins now
            delay = max(min(when - now, self._gap), _SHORTEST)
            self._timer = loop.call_later(delay, self._check, context=Context())

    def _next(self, now: float) -> Deadline:
        """The deadline that is met first if no data arrives."""
        progress, total = self._progress, (self._total, TotalTimeout, "The upstream's answer took too long.")
        if progress is None:
            return total
        quiet_since = now if self._paused else max(self._quiet_since, progress.fed)
        if not progress.started:
            return min(
                total, (self._first_output, FirstOutputTimeout, "The upstream began no answer in time."), key=_when
            )
        return min(total, (quiet_since + self._gap, GapTimeout, "The upstream went silent."), key=_when)
