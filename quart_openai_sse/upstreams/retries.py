"""Retries: after which failures a request is sent again, after how long, and the `Retry-After` of an upstream."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from quart_openai_sse.errors import (
    ConnectTimeout,
    OpenAISSEError,
    UpstreamCredentials,
    UpstreamError,
    UpstreamQuota,
    UpstreamRefused,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from quart_openai_sse.upstreams import Headers

# As OpenAI's SDKs do, with every status from 500 on; 409 only if the answer says so.
_RETRYABLE = frozenset({408, 429})
_OF_ANOTHER = frozenset({404})  # another upstream may have the model, or the route
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_YEAR = 365.0 * 86400  # in seconds: the longest wait that is passed on


def retryable(error: OpenAISSEError) -> bool:
    """Whether a request that failed with *error* before any output may be sent to the same upstream again."""
    if isinstance(error, UpstreamRefused):
        return _is_passing(error) if error.should_retry is None else error.should_retry
    return isinstance(error, UpstreamUnreachable | ConnectTimeout | UpstreamTruncated)


def transferable(error: OpenAISSEError) -> bool:
    """Whether it may be sent to another upstream: not if the request itself is invalid, or its content refused."""
    if isinstance(error, UpstreamRefused):  # `x-should-retry` is about the same upstream only
        return retryable(error) or _is_passing(error) or error.status in _OF_ANOTHER
    return isinstance(error, UpstreamError)


def is_failure(error: OpenAISSEError) -> bool:
    """Whether it counts against the upstream's health. That it does not have a model does not."""
    return transferable(error) and not (isinstance(error, UpstreamRefused) and error.status in _OF_ANOTHER)


def weight(error: OpenAISSEError) -> tuple[int, float]:
    """How much a failure says: if the upstreams failed in different ways, the caller gets the one with the most weight.

    An upstream that may answer later says more than one that refuses our key or account, and that more than one without
    the model. Of those that may answer later, the one says most that may do so first.
    """
    if isinstance(error, UpstreamRefused) and error.status in _OF_ANOTHER:
        return 0, 0.0
    if isinstance(error, UpstreamCredentials | UpstreamQuota):
        return 1, 0.0
    return 2, -math.inf if error.retry_after is None else -error.retry_after


def _is_passing(error: UpstreamRefused) -> bool:
    """Whether an upstream that refuses so may answer the same request later."""
    return error.status >= 500 or error.status in _RETRYABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait before a retry. Times are in seconds."""

    retries: int = 3
    delay: float = 1.0
    """The wait before the first retry; it doubles with each further one."""
    longest: float = 30.0
    """The longest `Retry-After` of an upstream that is honoured."""

    def wait(self, retry: int, error: OpenAISSEError, *, jitter: float) -> float | None:
        """Seconds to wait before retry number *retry*, from 1; `None`: do not retry.

        *jitter*, from 0 to 1, shortens the wait by up to a quarter. A `Retry-After` is never shortened.
        """
        if retry > self.retries or not retryable(error):
            return None
        delay = self.delay * float(1 << (retry - 1)) * (1 - jitter / 4)
        if error.retry_after is None:
            return delay
        return None if error.retry_after > self.longest else max(delay, error.retry_after)


def retry_after(headers: Headers) -> float | None:
    """Seconds until the next attempt, from `retry-after-ms` or from either form of Retry-After (RFC 9110, 10.2.3)."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after", "")
    seconds = _number(value.partition(",")[0])  # a gateway may have added its own to the server's
    return seconds if seconds is not None or not value else _until(value)


def _number(value: str | None) -> float | None:
    return min(float(value), _YEAR) if value and _NUMBER.fullmatch(value.strip()) else None


def _until(date: str) -> float | None:
    """Seconds until an HTTP date, 0 if it has passed; `None` for an invalid date."""
    try:
        when = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return min(max(0.0, when.timestamp() - time.time()), _YEAR)
