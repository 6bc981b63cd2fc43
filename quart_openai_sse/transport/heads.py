"""How strictly responses are parsed, and heads that the standard lets a client read although they are irregular."""

from __future__ import annotations

import re
from typing import Any

from httptools import HttpResponseParser

_END = re.compile(rb"\n\r?\n")
_LENGTH = re.compile(
    rb"^content-length:[ \t]*([0-9]+(?:[ \t]*,[ \t]*[0-9]+)*)[ \t]*\r?\n(?![ \t])",  # no line that the next continues
    re.IGNORECASE | re.MULTILINE,
)
_CODING = re.compile(rb"^transfer-encoding:", re.IGNORECASE | re.MULTILINE)
_FRAMING = rb"(?:connection|content-length|transfer-encoding)"
_FOLD = re.compile(rb"\r?\n[ \t]+")
_FOLDED_FRAMING = re.compile(rb"^" + _FRAMING + rb":[^\n]*\n[ \t]", re.IGNORECASE | re.MULTILINE)
_VALUE = re.compile(rb"^(?!" + _FRAMING + rb":)([^:\n]+:)([^\n]+)", re.IGNORECASE | re.MULTILINE)
_CONTROL = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")
_INFORMATIONAL = re.compile(rb"HTTP/1\.[01] 1")


def create_parser(callbacks: Any) -> HttpResponseParser:
    """A parser that calls the methods of *callbacks*. It is strict where a lenient one could be misled."""
    parser = HttpResponseParser(callbacks)
    parser.set_dangerous_leniencies(
        lenient_optional_cr_before_lf=True,  # RFC 9112, 2.2
        lenient_spaces_after_chunk_size=True,
    )
    return parser


def find_end(response: bytes) -> int:
    """Where the final head of *response* ends, or -1 if it is not complete. Informational responses come before it."""
    start = _final(response)
    found = _END.search(response, start)
    return -1 if found is None else found.end()


def is_irregular(reason: str) -> bool:
    """Whether *reason*, llhttp's for refusing a head, may be one that `regular` removes."""
    return "Content-Length" in reason or reason in _REASONS


_REASONS = ("Unexpected whitespace after header value", "Invalid header value char")


def regular(response: bytes) -> bytes | None:
    """*response* with a final head that a strict parser accepts, where the standard says how a client reads it.

    * `Transfer-Encoding` overrides `Content-Length`, and equal lengths are one (RFC 9112, 6.3; RFC 9110, 8.6).
    * A folded line continues its value, and a control character is a space (RFC 9112, 5.2; RFC 9110, 5.5), but not in
      the fields that say where the body ends.

    `None` for lengths that differ, and for such a field that is folded. The head must be complete. Every other line
    stays as it is, for a strict parser to judge.
    """
    start, end = _final(response), find_end(response)
    status_line, _, lines = response[start:end].partition(b"\n")
    if lines[:1] in (b" ", b"\t") or _FOLDED_FRAMING.search(lines):
        return None
    lines = _VALUE.sub(lambda found: found[1] + _CONTROL.sub(b" ", found[2]), _FOLD.sub(b" ", lines))
    lengths = {length.strip() for found in _LENGTH.finditer(lines) for length in found[1].split(b",")}
    if len(lengths) > 1:
        return None
    lines = _LENGTH.sub(b"", lines)
    once = b"Content-Length: %b\r\n" % lengths.pop() if lengths and not _CODING.search(lines) else b""
    return b"%b%b\n%b%b%b" % (response[:start], status_line, once, lines, response[end:])


def _final(response: bytes) -> int:
    """Where the final head begins."""
    start = 0
    while _INFORMATIONAL.match(response, start) and (found := _END.search(response, start)):
        start = found.end()
    return start
