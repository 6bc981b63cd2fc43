"""The circuit breaker: an upstream that keeps failing is not asked for a while."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class BreakerState(Enum):
    """The states of a circuit breaker."""

    CLOSED = "requests pass"
    OPEN = "no request passes"
    HALF_OPEN = "one request is being tried"


class CallResult(Enum):
    """The result of a request, as a breaker counts it."""

    SUCCESS = "an answer, in time"
    FAILURE = "an error, or a slow first output"
    UNKNOWN = "cancelled"


BREAKER_TRANSITIONS: Mapping[BreakerState, Mapping[CallResult, BreakerState]] = {
    BreakerState.CLOSED: {
        CallResult.SUCCESS: BreakerState.CLOSED,
        CallResult.FAILURE: BreakerState.OPEN,  # once there were *failures* in a row
        CallResult.UNKNOWN: BreakerState.CLOSED,
    },
    BreakerState.OPEN: {  # results of requests that began before it opened
        CallResult.SUCCESS: BreakerState.CLOSED,
        CallResult.FAILURE: BreakerState.OPEN,
        CallResult.UNKNOWN: BreakerState.OPEN,
    },
    BreakerState.HALF_OPEN: {
        CallResult.SUCCESS: BreakerState.CLOSED,
        CallResult.FAILURE: BreakerState.OPEN,
        CallResult.UNKNOWN: BreakerState.OPEN,
    },
}


class Breaker:
    """Lets no request pass for *reset* seconds after *failures* failures in a row; then one, as a probe.

    It reads no clock: *now* is in seconds, from any fixed point.
    """

    def __init__(self, *, failures: int, reset: float) -> None:
        self.state = BreakerState.CLOSED
        self._failures = failures
        self._reset = reset
        self._in_a_row = 0
        self._until = 0.0

    def admits(self, now: float) -> bool:
        """Whether a request may pass. Call `enter` if it is sent."""
        return self.state is BreakerState.CLOSED or (self.state is BreakerState.OPEN and now >= self._until)

    def enter(self, now: float) -> None:
        """A request is sent. The first one after *reset* seconds is the probe."""
        if self.state is BreakerState.OPEN and now >= self._until:
            self.state = BreakerState.HALF_OPEN

    def leave(self, result: CallResult, now: float) -> None:
        """The request has this result."""
        before, after = self.state, BREAKER_TRANSITIONS[self.state][result]
        self._in_a_row = {CallResult.SUCCESS: 0, CallResult.FAILURE: self._in_a_row + 1}.get(result, self._in_a_row)
        if before is BreakerState.CLOSED and after is BreakerState.OPEN and self._in_a_row < self._failures:
            return
        if result is CallResult.FAILURE and before is not BreakerState.OPEN:
            self._until = now + self._reset
        self.state = after
