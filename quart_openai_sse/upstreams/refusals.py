"""The error for an answer of an upstream whose status is not 200."""

from __future__ import annotations

import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime

from quart_openai_sse.errors import OpenAISSEError, UpstreamCredentials, UpstreamError, UpstreamRefused
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.upstream_errors import error_from
from quart_openai_sse.upstreams import Headers

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


_YEAR = 365.0 * 86400  # in seconds: the longest wait that is passed on


def refusal(status: int, headers: Headers, body: bytes) -> OpenAISSEError:
    """The error for an answer with this *status*, *headers* and *body*."""
    if status in (401, 403):
        return UpstreamCredentials(f"The upstream refused our key ({status}).")
    if status < 400:
        return UpstreamError(f"The upstream answered with status {status}.")
    error = _error_object(body)
    found = error_from(error, cls=UpstreamRefused, status=status)
    if not error:
        found.args = (f"The upstream answered with status {status}.",)
    if status >= 500:
        found.type = "upstream_error" if found.type == "invalid_request_error" else found.type
    found.retry_after = _retry_after(headers)
    found.should_retry = {"true": True, "false": False}.get(headers.get("x-should-retry", ""))
    return found


def _error_object(body: bytes) -> object:
    """The error in a body: OpenAI's object, `{"detail": …}`, plain text, or `None` for HTML."""
    try:
        decoded = json.decode(body)
    except ValueError:
        text = body[:300].decode("utf-8", "replace").strip()
        return None if text.startswith("<") else text
    if isinstance(decoded, dict):
        return decoded.get("error") or decoded.get("detail") or (decoded if "message" in decoded else None)
    return decoded


def _retry_after(headers: Headers) -> float | None:
    """Seconds until the next attempt, from `retry-after-ms` or from either form of Retry-After (RFC 9110, 10.2.3)."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
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
