"""When a request is sent again: after which failures, after how long; and the breaker that spares who fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from quart_openai_sse.errors import (
    ConnectTimeout,
    OpenAISSEError,
    UpstreamError,
    UpstreamRefused,
    UpstreamTruncated,
    UpstreamUnreachable,
)

_RETRYABLE = frozenset({408, 429, 500, 502, 503, 504})  # as OpenAI's SDKs do; 409 only where the answer says so


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request upstream that failed before any output."""

    upstream: str
    """The name of the upstream that was asked."""
    error: OpenAISSEError
    wait: float | None
    """Seconds until the next attempt; `None` if there is none."""


def retryable(error: OpenAISSEError) -> bool:
    """Whether the same upstream may be asked again, if there was no output yet."""
    if isinstance(error, UpstreamRefused):
        return error.status in _RETRYABLE if error.should_retry is None else error.should_retry
    return isinstance(error, UpstreamUnreachable | ConnectTimeout | UpstreamTruncated)


def transferable(error: OpenAISSEError) -> bool:
    """Whether another upstream may do better, if there was no output yet: not where the request is at fault."""
    return retryable(error) or (isinstance(error, UpstreamError) and not isinstance(error, UpstreamRefused))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait before an attempt is repeated. Times are seconds."""

    retries: int = 3
    delay: float = 1.0
    """Before the first retry; each later one waits twice as long."""
    longest: float = 30.0
    """The longest wait that an upstream may ask for by `Retry-After`."""

    def wait(self, retry: int, error: OpenAISSEError, *, jitter: float) -> float | None:
        """Seconds to wait before retry number *retry*, from 1; `None`: it is not to be.

        *jitter*, from 0 to 1, shortens the wait by up to a quarter. A `Retry-After` is never shortened.
        """
        if retry > self.retries or not retryable(error):
            return None
        delay = self.delay * float(1 << (retry - 1)) * (1 - jitter / 4)
        if error.retry_after is None:
            return delay
        return None if error.retry_after > self.longest else max(delay, error.retry_after)


# The breaker --------------------------------------------------------------------------------------------------------


class BreakerState(Enum):
    """Where a circuit breaker stands."""

    CLOSED = "requests pass"
    OPEN = "nothing passes, for a while"
    HALF_OPEN = "one request is on its way to see whether things are better"


class Outcome(Enum):
    """What became of a request, to a breaker."""

    GOOD = "an answer, in time"
    BAD = "a failure, or a slow beginning"
    NOTHING = "cancelled: nobody knows"


TRANSITIONS: Mapping[BreakerState, Mapping[Outcome, BreakerState]] = {
    BreakerState.CLOSED: {
        Outcome.GOOD: BreakerState.CLOSED,
        Outcome.BAD: BreakerState.OPEN,  # once there were enough of them in a row
        Outcome.NOTHING: BreakerState.CLOSED,
    },
    BreakerState.OPEN: {  # the ends of requests that began before it opened
        Outcome.GOOD: BreakerState.CLOSED,
        Outcome.BAD: BreakerState.OPEN,
        Outcome.NOTHING: BreakerState.OPEN,
    },
    BreakerState.HALF_OPEN: {
        Outcome.GOOD: BreakerState.CLOSED,
        Outcome.BAD: BreakerState.OPEN,
        Outcome.NOTHING: BreakerState.OPEN,
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

    def leave(self, outcome: Outcome, now: float) -> None:
        """What became of it."""
        before, after = self.state, TRANSITIONS[self.state][outcome]
        self._in_a_row = {Outcome.GOOD: 0, Outcome.BAD: self._in_a_row + 1}.get(outcome, self._in_a_row)
        if before is BreakerState.CLOSED and after is BreakerState.OPEN and self._in_a_row < self._failures:
            return
        if outcome is Outcome.BAD and before is not BreakerState.OPEN:
            self._until = now + self._reset
        self.state = after
