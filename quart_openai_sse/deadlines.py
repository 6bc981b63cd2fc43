"""The deadlines of one answer of an upstream, in phases, each with an error of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from quart_openai_sse.errors import FirstOutputTimeout, GapTimeout, OpenAISSEError, TotalTimeout

_LOOK = 0.5  # seconds between two looks at what has come: a gap is noticed late by this much at most


class Deadlines:
    """The clocks of one answer, on one timer, which looks at what is noted here. None is ever early."""

    def __init__(
        self,
        *,
        total: float,
        first_output: float | None = None,
        gap: float | None = None,
        started: Callable[[], bool] = lambda: True,
    ) -> None:
        self.heard = False
        """Set when something has come from the upstream."""
        self.paused = False
        """Set while the reader is slow, not the upstream."""
        self._loop = asyncio.get_running_loop()
        self._quiet_since = now = self._loop.time()
        self._total = now + total
        self._first_output = None if first_output is None else now + first_output
        self._gap = gap
        self._started = started
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Deadlines:
        await self._timeout.__aenter__()
        self._look()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._timeout.__aexit__(*exc_info)
        except TimeoutError:
            _, error, message = self._next()
            raise error(message) from None

    def _look(self) -> None:
        now = self._loop.time()
        if self._first_output is not None and self._started():
            self._first_output = None
            self.heard = True
        if self.heard or self.paused:
            self.heard = False
            self._quiet_since = now
        when, *_ = self._next()
        if when <= now:
            self._timeout.reschedule(now)
        else:
            self._timer = self._loop.call_at(when if self._gap is None else min(when, now + _LOOK), self._look)

    def _next(self) -> tuple[float, type[OpenAISSEError], str]:
        """The deadline that is met first if nothing comes, and its error."""
        deadlines: list[tuple[float, type[OpenAISSEError], str]] = [
            (self._total, TotalTimeout, "The upstream's answer took too long.")
        ]
        if self._first_output is not None:
            deadlines.append((self._first_output, FirstOutputTimeout, "The upstream began no answer in time."))
        elif self._gap is not None:
            deadlines.append((self._quiet_since + self._gap, GapTimeout, "The upstream went silent."))
        return min(deadlines, key=itemgetter(0))
