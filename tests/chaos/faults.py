"""The table of upstreams that break: what each does, and what comes of it in each window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from quart_openai_sse.testing import chunk, finish
from tests.chaos import actions as a
from tests.chaos.actions import Action
from tests.chaos.wire import CLOSING_HEAD, END, HEAD, LENGTH_HEAD, OLD_HEAD, OUTPUT, ROLE, Window, chunked

ATTEMPTS = 3
"""How often a chaos app asks, where asking again makes sense."""


@dataclass(frozen=True)
class Expected:
    """What a client is to see. A failure with status 200 comes as an event, after the output."""

    status: int = 200
    code: str = ""
    attempts: int = 1


WHOLE = Expected()


def again(code: str, status: int = 502) -> Expected:
    """A failure with a true status, after all attempts."""
    return Expected(status, code, ATTEMPTS)


def once(code: str, status: int = 502) -> Expected:
    """A failure with a true status, which no other attempt would mend."""
    return Expected(status, code)


def event(code: str) -> Expected:
    """A failure after output."""
    return Expected(200, code)


class Fault(NamedTuple):
    """What an upstream does; then, by window, what is to come of it, or the reason why it can't happen there."""

    does: Action
    before: Expected | str
    headers: Expected | str
    preamble: Expected | str
    middle: Expected | str
    one_piece: Expected | str
    head: bytes = HEAD
    n: int = 1
    """The choices asked for."""

    def expected(self, window: Window) -> Expected | str:
        return self[1 + list(Window).index(window)]  # type: ignore[return-value]


UNREACHABLE, TRUNCATED, GARBLED = again("upstream_unreachable"), again("upstream_truncated"), once("upstream_garbled")
TOO_LARGE = "event_too_large"
UNREADABLE, MANGLED = once("upstream_unreadable"), event("upstream_unreadable")
CUT, MESS = event("upstream_truncated"), event("upstream_garbled")
NO_OUTPUT, TOO_LONG = once("first_output_timeout", 504), once("total_timeout", 504)
ODD, BAD_KEY = again("odd"), once("upstream_credentials")

DONE = b"data: [DONE]\n\n"

CONNECTED = "it is connected"
A_HEADER = "the headers have been sent"
A_BODY = "there is no body yet"
AN_ANSWER = "it is the headers that say so"
SSE_ONLY = "JSON has none"
STREAM_ONLY = "a fault of streams"

FAULTS = {
    # the connection
    "refuses the connection": Fault(a.close, UNREACHABLE, *[CONNECTED] * 4),
    "accepts no connection": Fault(a.close, again("connect_timeout", 504), *[CONNECTED] * 4),
    "closes": Fault(a.close, UNREACHABLE, TRUNCATED, TRUNCATED, CUT, TRUNCATED),
    "resets": Fault(a.reset, UNREACHABLE, TRUNCATED, TRUNCATED, CUT, TRUNCATED),
    "closes within a line": Fault(a.within_a_line(a.close), UNREACHABLE, TRUNCATED, TRUNCATED, CUT, TRUNCATED),
    "resets within a line": Fault(a.within_a_line(a.reset), UNREACHABLE, TRUNCATED, TRUNCATED, CUT, TRUNCATED),
    "stalls": Fault(a.stall, NO_OUTPUT, NO_OUTPUT, NO_OUTPUT, event("gap_timeout"), TOO_LONG),
    "stalls within a line": Fault(
        a.within_a_line(a.stall), NO_OUTPUT, NO_OUTPUT, NO_OUTPUT, event("gap_timeout"), TOO_LONG
    ),
    "dribbles, byte by byte": Fault(a.dribble, WHOLE, WHOLE, WHOLE, WHOLE, WHOLE),
    "dribbles for ever": Fault(a.dribble_for_ever, NO_OUTPUT, NO_OUTPUT, NO_OUTPUT, event("total_timeout"), TOO_LONG),
    # HTTP
    "speaks something else": Fault(a.send(b"SSH-2.0-OpenSSH\r\n\r\n"), UNREADABLE, *[A_HEADER] * 4),
    "a header without a name": Fault(a.answer(b"HTTP/1.1 200 OK\r\n: x", b"", a.stall), UNREADABLE, *[A_HEADER] * 4),
    "two lengths": Fault(
        a.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3", b"{}"), UNREADABLE, *[A_HEADER] * 4
    ),
    "redirects": Fault(
        a.answer(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0", b"", a.keep),
        once("upstream_error"),
        *[A_HEADER] * 4,
    ),
    "has no content": Fault(a.answer(b"HTTP/1.1 204 None", b"", a.keep), once("upstream_error"), *[A_HEADER] * 4),
    "says 100 Continue first": Fault(
        a.send(b"HTTP/1.1 100 Continue\r\n\r\n" + Window.BEFORE.closing(), a.keep), WHOLE, *[A_HEADER] * 4
    ),
    "says 100 Continue for ever": Fault(a.for_ever(b"HTTP/1.1 100 Continue\r\n\r\n"), NO_OUTPUT, *[A_HEADER] * 4),
    "answers in HTTP/1.0": Fault(a.send(OLD_HEAD + ROLE + OUTPUT + finish(), a.close), WHOLE, *[A_HEADER] * 4),
    "HTTP/1.0, closes": Fault(a.close, AN_ANSWER, TRUNCATED, TRUNCATED, CUT, GARBLED, head=OLD_HEAD),
    "without length, closes": Fault(a.close, AN_ANSWER, TRUNCATED, TRUNCATED, CUT, GARBLED, head=CLOSING_HEAD),
    "shorter than its length": Fault(a.close, AN_ANSWER, TRUNCATED, TRUNCATED, CUT, TRUNCATED, head=LENGTH_HEAD),
    "a chunk longer than it says": Fault(
        a.send(b"5\r\nmore than five\r\n"), A_BODY, UNREADABLE, UNREADABLE, MANGLED, UNREADABLE
    ),
    "a chunk shorter than it says": Fault(a.send(b"ff\r\nhalf", a.close), A_BODY, TRUNCATED, TRUNCATED, CUT, TRUNCATED),
    "a chunk's size is no number": Fault(
        a.send(b"-5\r\nhalf\r\n"), A_BODY, UNREADABLE, UNREADABLE, MANGLED, UNREADABLE
    ),
    "ends early": Fault(a.send(END, a.keep), A_BODY, TRUNCATED, TRUNCATED, CUT, GARBLED),
    "each byte a chunk": Fault(a.crumble, WHOLE, WHOLE, WHOLE, WHOLE, WHOLE),
    # what is no stream
    "HTML": Fault(
        a.answer(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13", b"<html></html>", a.keep),
        GARBLED,
        *[A_HEADER] * 4,
    ),
    "HTML in the body": Fault(a.finish(b"<html>Bad gateway</html>"), A_BODY, GARBLED, TRUNCATED, CUT, GARBLED),
    "gzip, though not accepted": Fault(
        a.send(HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n" + chunked(b"\x1f\x8b")), GARBLED, *[A_HEADER] * 4
    ),
    "gzip, without saying so": Fault(
        a.finish(b"\x1f\x8b\x08\x00" + b"\x9c\n" * 9), A_BODY, GARBLED, TRUNCATED, CUT, GARBLED
    ),
    "JSON with status 200": Fault(
        a.answer(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14", b'{"choices":[]}', a.keep),
        GARBLED,
        *[A_HEADER] * 4,
    ),
    "an error with status 200": Fault(
        a.answer(b"HTTP/1.1 200 OK\r\nContent-Type: application/json", b'{"error":{"message":"m","code":"odd"}}'),
        ODD,
        *[A_HEADER] * 4,
    ),
    # within the stream
    "half a UTF-8 character": Fault(
        a.say(b'data: {"choices":[{"delta":{"content":"\xe2\x82"}}]}\n\n'), A_BODY, GARBLED, GARBLED, MESS, STREAM_ONLY
    ),
    "half a UTF-8 character, then the end": Fault(
        a.finish(b'data: "\xe2\x82'), A_BODY, TRUNCATED, TRUNCATED, CUT, GARBLED
    ),
    "an event that is not JSON": Fault(a.say(b"data: hello\n\n"), A_BODY, GARBLED, GARBLED, MESS, STREAM_ONLY),
    "garbage": Fault(a.say(b"data: \x00\xff{{{\n\n"), A_BODY, GARBLED, GARBLED, MESS, STREAM_ONLY),
    "JSON of another shape": Fault(a.say(b"data: [7]\n\n"), A_BODY, GARBLED, GARBLED, MESS, STREAM_ONLY),
    "JSON too deep": Fault(a.say(b"data: " + b"[" * 50_000 + b"\n\n"), A_BODY, GARBLED, GARBLED, MESS, STREAM_ONLY),
    "half an event": Fault(a.finish(b'data: {"choices":[{"del'), A_BODY, TRUNCATED, TRUNCATED, CUT, GARBLED),
    "an error": Fault(
        a.say(b'data: {"error":{"message":"m","code":"odd"}}\n\n'), A_BODY, ODD, ODD, event("odd"), SSE_ONLY
    ),
    "an error in JSON": Fault(a.finish(b'"error":{"message":"m","code":"odd"}}'), A_BODY, GARBLED, TRUNCATED, CUT, ODD),
    "an error without a field name": Fault(
        a.finish(b'{"error":{"message":"m","code":"odd"}}'), A_BODY, ODD, ODD, event("odd"), SSE_ONLY
    ),
    "an error as a field": Fault(
        a.finish(b'error: {"message":"m","code":"odd"}\n\n'), A_BODY, ODD, ODD, event("odd"), SSE_ONLY
    ),
    "an event named error": Fault(
        a.finish(b'event: error\ndata: {"message":"m","code":"odd"}\n\n'), A_BODY, ODD, ODD, event("odd"), SSE_ONLY
    ),
    "an error with a status": Fault(
        a.say(b'data: {"error":{"message":"m","code":503}}\n\n'),
        A_BODY,
        again("503", 503),
        again("503", 503),
        event("503"),
        SSE_ONLY,
    ),
    "an error about our key": Fault(
        a.say(b'data: {"error":{"message":"m","code":401}}\n\n'),
        A_BODY,
        BAD_KEY,
        BAD_KEY,
        event("upstream_credentials"),
        SSE_ONLY,
    ),
    "an error, then [DONE]": Fault(
        a.finish(b'data: {"error":"overloaded"}\n\ndata: [DONE]\n\n'),
        A_BODY,
        again("upstream_failed"),
        again("upstream_failed"),
        event("upstream_failed"),
        SSE_ONLY,
    ),
    "[DONE] too early": Fault(a.finish(b"data: [DONE]\n\n"), A_BODY, TRUNCATED, TRUNCATED, CUT, GARBLED),
    "one of two choices": Fault(
        a.finish(OUTPUT + chunk(finish_reason="stop")), A_BODY, CUT, CUT, CUT, STREAM_ONLY, n=2
    ),
    "finishes, then resets": Fault(
        a.rest(lambda rest: rest.replace(DONE, b""), a.reset), A_BODY, CUT, CUT, CUT, STREAM_ONLY
    ),
    # without end
    "an endless line": Fault(
        a.flood, UNREADABLE, once(TOO_LARGE), once(TOO_LARGE), event(TOO_LARGE), once("stream_too_long", 500)
    ),
    "an endless stream": Fault(a.for_ever(chunked(OUTPUT)), A_BODY, *[event("total_timeout")] * 3, STREAM_ONLY),
    "empty deltas for ever": Fault(
        a.for_ever(chunked(ROLE)), A_BODY, NO_OUTPUT, NO_OUTPUT, event("total_timeout"), STREAM_ONLY
    ),
    "a preamble without end": Fault(
        a.for_ever(chunked(ROLE * 300), pause=0), A_BODY, GARBLED, GARBLED, "the preamble is over", STREAM_ONLY
    ),
    "comments only, for ever": Fault(
        a.for_ever(chunked(b": wait\n\n")), A_BODY, NO_OUTPUT, NO_OUTPUT, event("total_timeout"), SSE_ONLY
    ),
    # odd, but whole
    "[DONE] twice, and data after it": Fault(
        a.rest(lambda rest: rest + DONE + chunk("ghost"), a.end), A_BODY, WHOLE, WHOLE, WHOLE, STREAM_ONLY
    ),
    "a finish_reason, but no [DONE]": Fault(
        a.rest(lambda rest: rest.replace(DONE, b""), a.end), A_BODY, WHOLE, WHOLE, WHOLE, STREAM_ONLY
    ),
    "closes after [DONE]": Fault(a.rest(bytes, a.close), A_BODY, WHOLE, WHOLE, WHOLE, STREAM_ONLY),
    "resets after [DONE]": Fault(a.rest(bytes, a.reset), A_BODY, WHOLE, WHOLE, WHOLE, STREAM_ONLY),
    "stalls after [DONE]": Fault(a.rest(bytes, a.stall), A_BODY, WHOLE, WHOLE, WHOLE, STREAM_ONLY),
    "CR line ends": Fault(
        a.rest(lambda rest: rest.replace(b"\n", b"\r"), a.end), A_BODY, WHOLE, WHOLE, WHOLE, STREAM_ONLY
    ),
}


class Cell(NamedTuple):
    """One fault in one window."""

    name: str
    window: Window
    expected: Expected

    @property
    def fault(self) -> Fault:
        return FAULTS[self.name]

    @property
    def model(self) -> str:
        """The name under which a chaos upstream does it."""
        return f"{self.name} @ {self.window.name}"


def cells() -> Iterator[Cell]:
    """Every cell that can be."""
    for name, fault in FAULTS.items():
        for window in Window:
            expected = fault.expected(window)
            if isinstance(expected, Expected):
                yield Cell(name, window, expected)
