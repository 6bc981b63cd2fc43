"""The error for an answer of an upstream whose status is not 200."""

from __future__ import annotations

from quart_openai_sse.errors import OpenAISSEError, UpstreamCredentials, UpstreamError, UpstreamRefused
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.upstream_errors import error_from
from quart_openai_sse.upstreams import Headers
from quart_openai_sse.upstreams.retries import retry_after


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
    found.retry_after = retry_after(headers)
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
