"""The error for an answer whose status is an error, and the log line with what callers are not told of it."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from quart_openai_sse.errors import OpenAISSEError, UpstreamError, UpstreamRefused
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.error_shapes import read_report
from quart_openai_sse.protocol.sse import BOM
from quart_openai_sse.protocol.upstream_errors import error_of, reported_error
from quart_openai_sse.protocol.upstream_events import UpstreamDecoder, find_error
from quart_openai_sse.protocol.upstream_sentences import one_line
from quart_openai_sse.upstreams import Headers
from quart_openai_sse.upstreams.retries import retry_after

logger = logging.getLogger("quart_openai_sse")

_MOST_UNPACKED = 64 << 10  # bytes of a compressed body
_MOST_TEXT = 300  # characters of a body that is not JSON
_SENTENCE = re.compile(rb'"(?:message|msg|error|detail)"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)')
_QUOTE = 12  # characters of a prompt; what is shorter may be a common word
_RUN = 20  # characters of a prompt that are found in a sentence only if it is quoted
_FILE = 2000  # characters without white space are no prompt
_MOST_SEARCHED = 1 << 20  # characters of a request: in more, a sentence is not searched for, and not logged
_WORDS = ("messages", "tools", "functions", "response_format", "prediction")


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

    What quotes the words of the *request*, or is quoted from them, is left out: no prompt may reach a log. So is what
    could quote them, if they are too many to be searched.
    """
    if not isinstance(error, UpstreamError) or not error.withheld:
        return
    texts = [text for text in _texts([request.get(member) for member in _WORDS]) if not _is_file(text)]
    if sum(map(len, texts)) <= _MOST_SEARCHED:
        words = " ".join(" ".join(texts).split())  # in one line, as the sentences of upstreams are
        pieces = [each for each in error.withheld if not (_is_of(each, words) or _begins(each, texts))]
    else:
        pieces = [each for each in error.withheld if len(each) < 2 * _RUN and not any(each in text for text in texts)]
    error.withheld = ()
    if pieces:
        where = f"status {error.status}: " if isinstance(error, UpstreamRefused) else ""
        said = where + one_line(", ".join(pieces), _MOST_TEXT)
        logger.warning("%s: %s; callers are not told: %s", upstream, error.code, said)


def _is_of(piece: str, words: str) -> bool:
    """Whether *piece* is quoted from *words*, or quotes twice `_RUN` characters of any part of them."""
    return piece in words or any(piece[at : at + _RUN] in words for at in range(0, len(piece) - _RUN + 1, _RUN))


def _begins(piece: str, texts: list[str]) -> bool:
    """Whether *piece* quotes the beginning of one of *texts*, or all of a short one."""
    beginnings = (" ".join(text[: 8 * _QUOTE].split())[: 4 * _QUOTE] for text in texts)
    return any(len(each) >= _QUOTE and each in piece for each in beginnings)


def _is_file(text: str) -> bool:
    """Whether it is a picture or the like in base64, and no words."""
    head = text[:_FILE]
    return len(head) == _FILE and head.isascii() and not any(map(str.isspace, head))


def _texts(value: object) -> Iterator[str]:
    """All texts in a JSON value, however deep it is nested."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, Mapping | list):
            waiting.extend(each.values() if isinstance(each, Mapping) else each)


def _error_in(headers: Headers, body: bytes) -> object:
    """The error in a body: JSON of any shape, plain text, or `None` for HTML and for what cannot be read."""
    body = _unpacked(headers, body).removeprefix(BOM).strip()
    if not body.startswith((b"{", b"[", b"<")):
        body = _reported(body)
    try:
        return json.decode(body)
    except ValueError:
        return _sentence_in(body) if body.startswith((b"{", b"[{")) else _text_in(body)


def _sentence_in(cut: bytes) -> str | None:
    """The first sentence in JSON of which the end is missing."""
    found = _SENTENCE.search(cut)
    try:
        return None if found is None else str(json.decode(b'"%b"' % found[1]))[:_MOST_TEXT]
    except ValueError:
        return None


def _text_in(body: bytes) -> str | None:
    """The beginning of a body that is text, and no HTML."""
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


def _reported(body: bytes) -> bytes:
    """The data of the event that reports an error, or of the first one, if *body* is an event stream; else *body*."""
    decoder = UpstreamDecoder()
    events = decoder.feed_data(body + b"\n\n")
    if not events:
        return body if decoder.is_document else b""
    return next((event for event in events if find_error(event) is not None), events[0])
