"""The deadlines of an app's model."""

from __future__ import annotations

import math
from operator import itemgetter
from time import monotonic

from quart_openai_sse.errors import ModelFirstOutputTimeout, ModelGapTimeout, ModelTotalTimeout
from quart_openai_sse.producers.generators import AppGenerator
from quart_openai_sse.upstreams.deadlines import Deadline, Deadlines

_when = itemgetter(0)


class ModelDeadlines(Deadlines):
    """Raises `ModelTotalTimeout`, `ModelFirstOutputTimeout` or `ModelGapTimeout`; see `Deadlines`.

    While it is paused, the clock of the first output stands still, and the clock of gaps starts again afterwards. Each
    `pause` needs a `resume` of its own.
    """

    def __init__(self, *, total: float, first_output: float, gap: float) -> None:
        super().__init__(total=total, first_output=first_output, gap=gap)
        self.model: AppGenerator | None = None
        """Gaps are only between its items, and not while it is at a `yield`."""
        self.started = False
        """Whether there was any output: *first_output* holds until then, *gap* afterwards."""
        self._pauses = 0
        self._paused_since = math.inf

    def pause(self) -> None:
        """Stops the clocks: the model waits for a request that has its own deadlines."""
        if not self._pauses:
            self._paused_since = monotonic()
        self._pauses += 1

    def resume(self) -> None:
        """Starts the clocks again."""
        self._pauses -= 1
        if not self._pauses:
            self._quiet_since = monotonic()
            self._first_output += self._quiet_since - self._paused_since

    def _next(self, now: float) -> Deadline:
        total = (self._total, ModelTotalTimeout, "The app's model took too long for its whole answer.")
        if not self.started:
            first_output = self._first_output + (now - self._paused_since if self._pauses else 0.0)
            first = (first_output, ModelFirstOutputTimeout, "The app's model began no answer in time.")
            return min(total, first, key=_when)
        model = self.model
        working = model is not None and not (self._pauses or model.at_yield or model.exhausted)
        quiet_since = max(self._quiet_since, model.resumed) if model is not None and working else now
        return min(total, (quiet_since + self._gap, ModelGapTimeout, "The app's model went silent."), key=_when)
