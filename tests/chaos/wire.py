"""The bytes of a sound answer, and the windows into which they are cut."""

from __future__ import annotations

from enum import Enum

from quart_openai_sse.testing import chunk, finish
from tests.raw import CLOSING_HEAD, END, HEAD, chunked

TEXT = "half"
"""All that a sound answer says."""

LENGTH_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n"
OLD_HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
JSON_HEAD = HEAD.replace(b"text/event-stream", b"application/json")

ROLE = chunk("", role="assistant")
OUTPUT = chunk(TEXT)
PIECE = (
    b'{"id":"chatcmpl-1","object":"chat.completion",',
    (b'"choices":[{"index":0,"message":{"role":"assistant","content":"half"},"finish_reason":"stop"}]}'),
)
"""An answer in one piece, in two halves."""


class Window(Enum):
    """How far an answer has come when the fault happens."""

    BEFORE = "before the headers"
    HEADERS = "after the headers"
    PREAMBLE = "after the preamble"
    MIDDLE = "mid-stream"
    ONE_PIECE = "in one piece"

    @property
    def stream(self) -> bool:
        """Whether the request asks for a stream."""
        return self is not Window.ONE_PIECE

    def opening(self, head: bytes = HEAD) -> bytes:
        """What a sound upstream has sent until then. Under another *head* the body has no chunks."""
        head = head if self.stream else head.replace(b"text/event-stream", b"application/json")
        body = {Window.PREAMBLE: [ROLE], Window.MIDDLE: [ROLE, OUTPUT], Window.ONE_PIECE: [PIECE[0]]}.get(self, [])
        return b"" if self is Window.BEFORE else head + b"".join(chunked(x) if head in CHUNKED else x for x in body)

    def rest(self) -> bytes:
        """What a sound upstream would say from then on, without headers and chunks."""
        if self is Window.ONE_PIECE:
            return PIECE[1]
        return (b"" if self is Window.MIDDLE else OUTPUT) + finish()

    def closing(self) -> bytes:
        """What a sound upstream would send from then on."""
        return (HEAD if self is Window.BEFORE else b"") + chunked(self.rest()) + END


CHUNKED = (HEAD, JSON_HEAD)

__all__ = ["CLOSING_HEAD", "END", "HEAD", "LENGTH_HEAD", "OLD_HEAD", "OUTPUT", "ROLE", "TEXT", "Window", "chunked"]
