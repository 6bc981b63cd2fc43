"""When a request is sent again: after which failures, after how long; and the breaker that spares who fails."""

from __future__ import annotations

from dataclasses import dataclass

from quart_openai_sse.errors import (
    ConnectTimeout,
    OpenAISSEError,
    UpstreamError,
    UpstreamRefused,
    UpstreamTruncated,
    UpstreamUnreachable,
)

_RETRYABLE = frozenset({408, 429, 500, 502, 503, 504})  # as OpenAI's SDKs do; 409 only where the answer says so


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
