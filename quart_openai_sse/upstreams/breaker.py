"""The circuit breaker that spares an upstream which fails."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class BreakerState(Enum):
    """Where a circuit breaker stands."""

    CLOSED = "requests pass"
    OPEN = "nothing passes, for a while"
    HALF_OPEN = "one request is on its way to see whether things are better"


class CallResult(Enum):
    """What became of a request, to a breaker."""

    GOOD = "an answer, in time"
    BAD = "a failure, or a slow beginning"
    NOTHING = "cancelled: nobody knows"


BREAKER_TRANSITIONS: Mapping[BreakerState, Mapping[CallResult, BreakerState]] = {
    BreakerState.CLOSED: {
        CallResult.GOOD: BreakerState.CLOSED,
        CallResult.BAD: BreakerState.OPEN,  # once there were enough of them in a row
        CallResult.NOTHING: BreakerState.CLOSED,
    },
    BreakerState.OPEN: {  # the ends of requests that began before it opened
        CallResult.GOOD: BreakerState.CLOSED,
        CallResult.BAD: BreakerState.OPEN,
        CallResult.NOTHING: BreakerState.OPEN,
    },
    BreakerState.HALF_OPEN: {
        CallResult.GOOD: BreakerState.CLOSED,
        CallResult.BAD: BreakerState.OPEN,
        CallResult.NOTHING: BreakerState.OPEN,
    },
}


class Breaker:
    """Keeps requests from an upstream after *failures* failures in a row, for *reset* seconds; then lets one through.

    It knows no clock: *now* is in seconds, from any beginning.
    """

    def __init__(self, *, failures: int, reset: float) -> None:
        self.state = BreakerState.CLOSED
        self._failures = failures
        self._reset = reset
        self._in_a_row = 0
        self._until = 0.0

    def admits(self, now: float) -> bool:
        """Whether a request may pass. It changes nothing: `enter` does."""
        return self.state is BreakerState.CLOSED or (self.state is BreakerState.OPEN and now >= self._until)

    def enter(self, now: float) -> None:
        """A request is sent; if it is the first after the rest, it is the probe."""
        if self.state is BreakerState.OPEN and now >= self._until:
            self.state = BreakerState.HALF_OPEN

    def leave(self, outcome: CallResult, now: float) -> None:
        """What became of it."""
        before, after = self.state, BREAKER_TRANSITIONS[self.state][outcome]
        self._in_a_row = {CallResult.GOOD: 0, CallResult.BAD: self._in_a_row + 1}.get(outcome, self._in_a_row)
        if before is BreakerState.CLOSED and after is BreakerState.OPEN and self._in_a_row < self._failures:
            return
        if outcome is CallResult.BAD and before is not BreakerState.OPEN:
            self._until = now + self._reset
        self.state = after
