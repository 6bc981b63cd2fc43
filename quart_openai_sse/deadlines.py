"""The deadlines of one answer of an upstream, in phases, each with an error of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio

from quart_openai_sse.errors import FirstOutputTimeout, GapTimeout, OpenAISSEError, TotalTimeout


class Deadlines:
    """The clocks of one answer, on one timer: a read only notes the time. Each phase has its own error."""

    def __init__(self, *, total: float, first_output: float | None = None, gap: float | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._heard = self._began
        self._total, self._first_output, self._gap = total, first_output, gap
        self._started = self._paused = False
        self._error: Callable[[], OpenAISSEError] | None = None
        self._scope = anyio.CancelScope()
        self._timer: asyncio.TimerHandle | None = None

    def heard(self, *, started: bool) -> None:
        """Something came from the upstream; *started*: there was real output."""
        self._heard = self._loop.time()
        self._paused = False
        if started and not self._started:
            self._started = True
            self._check()  # the gap's clock may be shorter than what the timer waits for

    def pause(self) -> None:
        """The reader is slow now, not the upstream."""
        self._paused = True

    async def __aenter__(self) -> None:
        self._scope.__enter__()
        self._check()

    async def __aexit__(self, *exc_info: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._scope.__exit__(*exc_info)
        if self._error is not None and self._scope.cancelled_caught:
            raise self._error() from None

    def _check(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = self._loop.time()
        deadlines = list(self._deadlines(now))
        for when, error in deadlines:
            if when <= now:
                self._error = error
                self._scope.cancel()
                return
        self._timer = self._loop.call_at(min(when for when, _ in deadlines), self._check)

    def _deadlines(self, now: float) -> list[tuple[float, Callable[[], OpenAISSEError]]]:
        deadlines: list[tuple[float, Callable[[], OpenAISSEError]]] = [
            (self._began + self._total, lambda: TotalTimeout("The upstream's answer took too long."))
        ]
        if not self._started and self._first_output is not None:
            when = self._began + self._first_output
            deadlines.append((when, lambda: FirstOutputTimeout("The upstream began no answer in time.")))
        elif self._gap is not None:
            when = (now if self._paused else self._heard) + self._gap
            deadlines.append((when, lambda: GapTimeout("The upstream went silent.")))
        return deadlines
