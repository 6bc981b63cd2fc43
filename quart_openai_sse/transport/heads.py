"""How strictly responses are parsed, and heads that give the length of their body more than once."""

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


def with_one_length(response: bytes) -> bytes | None:
    """*response* with a final head that gives the length of its body once: RFC 9112, 6.3; RFC 9110, 8.6.

    `Transfer-Encoding` overrides `Content-Length`, and lengths that are all the same are one. `None` for lengths that
    differ or are not numbers. The head must be complete. Every other line stays as it is, for a strict parser to judge.
    """
    start, end = _final(response), find_end(response)
    head = response[start:end]
    lengths = {length.strip() for found in _LENGTH.finditer(head) for length in found[1].split(b",")}
    if len(lengths) != 1:
        return None
    status_line, _, lines = _LENGTH.sub(b"", head).partition(b"\n")
    once = b"" if _CODING.search(head) else b"Content-Length: %b\r\n" % lengths.pop()
    return b"%b%b\n%b%b%b" % (response[:start], status_line, once, lines, response[end:])


def _final(response: bytes) -> int:
    """Where the final head begins."""
    start = 0
    while _INFORMATIONAL.match(response, start) and (found := _END.search(response, start)):
        start = found.end()
    return start
