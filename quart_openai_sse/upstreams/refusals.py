"""The error for an answer whose status is an error, and the log line with what callers are not told of it."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from quart_openai_sse.errors import OpenAISSEError, UpstreamError, UpstreamRefused
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.error_shapes import read_report
from quart_openai_sse.protocol.upstream_errors import error_of, reported_error
from quart_openai_sse.protocol.upstream_sentences import one_line
from quart_openai_sse.upstreams import Headers
from quart_openai_sse.upstreams.retries import retry_after

logger = logging.getLogger("quart_openai_sse")

_MOST_UNPACKED = 64 << 10  # bytes of a compressed body
_MOST_TEXT = 300  # characters of a body that is not JSON
_QUOTE = 12  # characters of a prompt; what is shorter may be a common word


def refusal(status: int, headers: Headers, body: bytes) -> OpenAISSEError:
    """The error for an answer with this *status*, *headers* and *body*."""
    if status < 400:
        return UpstreamError(f"The upstream answered with status {status}.")
    error = _error_in(headers, body)
    report = read_report(error)
    found = error_of(report, cls=UpstreamRefused, status=status, place=f"({status})")
    if not isinstance(found, UpstreamRefused):
        return found
    if not report.sentence and reported_error(error) is None:
        found.args = (f"The upstream answered with status {status}.",)
    if status >= 500:
        found.type = "upstream_error" if found.type == "invalid_request_error" else found.type
    if (seconds := retry_after(headers)) is not None:
        found.retry_after = seconds
    found.should_retry = {"true": True, "false": False}.get(headers.get("x-should-retry", ""))
    return found


def log_withheld(upstream: str, error: OpenAISSEError, request: Mapping[str, Any]) -> None:
    """Logs once, as a warning, what *upstream* said with *error* and callers are not told.

    What quotes the messages of the *request*, or is quoted from them, is left out: no prompt may reach a log.
    """
    if not isinstance(error, UpstreamError) or not error.withheld:
        return
    texts = list(_texts(request.get("messages")))
    pieces = [each for each in error.withheld if not any(_quotes(each, text) for text in texts)]
    error.withheld = ()
    if pieces:
        where = f"status {error.status}: " if isinstance(error, UpstreamRefused) else ""
        said = where + one_line(", ".join(pieces), _MOST_TEXT)
        logger.warning("%s: %s; callers are not told: %s", upstream, error.code, said)


def _quotes(piece: str, text: str) -> bool:
    return piece in text or (len(text) >= _QUOTE and text[: 4 * _QUOTE] in piece)


def _texts(value: object) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _error_in(headers: Headers, body: bytes) -> object:
    """The error in a body: JSON of any shape, plain text, or `None` for HTML and for what cannot be read."""
    body = _unpacked(headers, body).strip()
    if body.startswith((b"data:", b"event:", b"error:", b":")):
        body = _first_data(body)
    try:
        return json.decode(body)
    except ValueError:
        text = body[: 4 * _MOST_TEXT].decode("utf-8", "replace")[:_MOST_TEXT].strip()
        is_text = all(each.isprintable() or each.isspace() for each in text) and "\ufffd" not in text[:-1]
        return text if is_text and not text.startswith("<") else None


def _unpacked(headers: Headers, body: bytes) -> bytes:
    """The body, or its beginning, of an answer that is compressed although we do not accept that."""
    if not body.startswith(b"\x1f\x8b") and headers.get("content-encoding") != "deflate":
        return body
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, _MOST_UNPACKED)
    except zlib.error:  # httpx has unpacked it, or it is broken
        return body


def _first_data(body: bytes) -> bytes:
    """The data of the first event of a body that is an event stream."""
    for line in body.splitlines():
        name, _, value = line.partition(b":")
        if name in (b"data", b"error"):
            return value.strip()
    return b""
