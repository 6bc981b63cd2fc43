"""An upstream's events: the standard's, errors in any other shape, and what is no event stream; however it is cut."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quart_openai_sse.errors import OpenAISSEError, UpstreamFailed
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.protocol.sse import EventTooLarge, SSEDecoder
from quart_openai_sse.protocol.upstream_events import UpstreamDecoder, find_error
from quart_openai_sse.testing import chunk

TEXT = chunk("Hi")


class Decoded(NamedTuple):
    """What a decoder made of its pieces."""

    events: list[bytes]
    left_over: list[bytes]
    """The events of a block without end."""
    is_document: bool
    too_large: bool = False


def decode(*pieces: bytes, limit: int = 1 << 20) -> Decoded:
    decoder = UpstreamDecoder(max_event_bytes=limit)
    events: list[bytes] = []
    too_large = False
    for piece in pieces:
        try:
            events += decoder.feed_data(piece)
        except EventTooLarge as error:
            events += [event.data for event in error.events]
            too_large = True
    left_over = decoder.end()
    return Decoded(events, left_over, decoder.is_document and not events, too_large)


def one_by_one(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


def failure(events: list[bytes]) -> OpenAISSEError:
    """The error that a stream of these events fails with, at the last one."""
    completion = Completion()
    for event in events[:-1]:
        completion.feed(event)
    with pytest.raises(OpenAISSEError) as raised:
        completion.feed(events[-1])
    return raised.value


# Errors ---------------------------------------------------------------------------------------------------------------

NO_SENTENCE = "The upstream reported an error."
FLAT = b'{"message":"Overloaded","code":503}'
OPENAIS = b'{"error":{"message":"Overloaded","code":503}}'
PRETTY = b'{\n  "error": {\n    "message": "Overloaded",\n    "code": 503\n  }\n}'

ERRORS: dict[str, tuple[bytes, str, int]] = {
    "OpenAI's": (b"data: " + OPENAIS, "Overloaded", 503),
    "an array": (b"data: [" + OPENAIS + b"]", "Overloaded", 503),
    "flat": (b"data: " + FLAT, "Overloaded", 503),
    "nested details": (b'data: {"detail":{"error":{"message":"Overloaded"}}}', "Overloaded", 502),
    "a list of errors": (b'data: {"errors":[{"message":"Overloaded"}]}', "Overloaded", 502),
    "a string": (b'data: "Overloaded"', "Overloaded", 502),
    "MiniMax's": (b'data: {"choices":null,"base_resp":{"status_code":5,"status_msg":"Overloaded"}}', "Overloaded", 502),
    "MiniMax's beside no choices": (
        b'data: {"choices":[],"base_resp":{"status_code":5,"status_msg":"Overloaded"}}',
        "Overloaded",
        502,
    ),
    "an event named error": (b"event: error\ndata: " + OPENAIS, "Overloaded", 503),
    "an event named error, flat": (b"event: error\ndata: " + FLAT, "Overloaded", 503),
    "an event named error, its name last": (b"data: " + FLAT + b"\nevent: error", "Overloaded", 503),
    "an event named Error": (b"event:Error\ndata:" + FLAT, "Overloaded", 503),
    "an event named error, without a code": (b'event: error\ndata: {"message":"Overloaded"}', "Overloaded", 502),
    "an event named error, in lines": (b'event: error\ndata: {"message":\ndata: "Overloaded"}', "Overloaded", 502),
    "an event named error, a string": (b'event: error\ndata: "Overloaded"', "Overloaded", 502),
    "an event named error, text": (b"event: error\ndata: Overloaded", "Overloaded", 502),
    "an event named error, an array": (b'event: error\ndata: [{"message":"Overloaded"}]', "Overloaded", 502),
    "an event named error, in a member": (b'event: error\ndata: {"error":"Overloaded"}', "Overloaded", 502),
    "an event named error, broken": (b'event: error\ndata: {"message":"Over', NO_SENTENCE, 502),
    "an event named error, null": (b"event: error\ndata: null", NO_SENTENCE, 502),
    "an event named error, [DONE]": (b"event: error\ndata: [DONE]", NO_SENTENCE, 502),
    "an event named error, empty": (b"event: error\ndata:", NO_SENTENCE, 502),
    "an event named error, without data": (b"event: error", NO_SENTENCE, 502),
    "an event named error, with choices": (
        b'event: error\ndata: {"choices":[],"message":"Overloaded"}',
        "Overloaded",
        502,
    ),
    "a field": (b"error: " + OPENAIS, "Overloaded", 503),
    "a field, flat": (b"error:" + FLAT, "Overloaded", 503),
    "a field, text": (b"error: Overloaded", "Overloaded", 502),
    "a field, text with a colon": (b"Error: model: Overloaded", "model: Overloaded", 502),
    "a field without a value": (b"error", NO_SENTENCE, 502),
    "a field beside an id": (b"id: 7\nerror: " + FLAT, "Overloaded", 503),
    "JSON without a field name": (OPENAIS, "Overloaded", 503),
    "JSON without a field name, flat": (FLAT, "Overloaded", 503),
    "JSON without a field name, an array": (b"[" + OPENAIS + b"]", "Overloaded", 503),
    "JSON without a field name, in lines": (PRETTY, "Overloaded", 503),
    "JSON without a field name, after a line of text": (b"upstream said\n" + OPENAIS, "Overloaded", 503),
    "JSON without a field name, indented": (b"  " + OPENAIS, "Overloaded", 503),
}


@pytest.mark.parametrize(("block", "message", "status"), ERRORS.values(), ids=ERRORS)
def test_an_error_keeps_its_sentence_in_every_shape(block: bytes, message: str, status: int) -> None:
    ends = (b"\n\n", b"\r\n\r\n", b"\n", b"")
    for before, end in product((b"", TEXT, b": wait\n\n", b"\xef\xbb\xbf\n"), ends):
        wire = before + block.replace(b"\n", b"\r\n" if b"\r" in end else b"\n") + end
        whole = decode(wire)
        assert decode(*one_by_one(wire)) == whole
        events = [*whole.events, *whole.left_over]
        found = failure(events)
        assert isinstance(found, UpstreamFailed)
        assert (found.message, found.status) == (message, status), wire
        assert len(events) == (2 if before == TEXT else 1), wire


def test_an_error_comes_after_the_data_of_its_block_and_before_the_next_block() -> None:
    wire = b"data: 1\nerror: Lost\n\ndata: 2\n\n" + OPENAIS + b"\ndata: 3\n\n"
    events = decode(wire).events
    assert [events[place] for place in (0, 2, 3)] == [b"1", b"2", b"3"]
    assert json.decode(events[1]) == {"error": "Lost"}
    assert events[4] == OPENAIS


def test_the_usage_beside_a_flat_error_counts() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    completion = Completion()
    [event] = decode(b"event: error\ndata: " + json.encode({"message": "Lost", "usage": usage}) + b"\n\n").events
    with pytest.raises(UpstreamFailed, match="Lost"):
        completion.feed(event)
    assert completion.usage == usage


NO_ERRORS: dict[str, tuple[bytes, list[bytes]]] = {
    "another named event": (b'event: ping\ndata: {"type":"ping"}\n\n', [b'{"type":"ping"}']),
    "a chunk without a field name": (b'{"choices":[{"delta":{"content":"b"}}]}\n\n', []),
    "an object without a field name": (b'{"status":"started"}\n\n', []),
    "text": (b"one moment\n\n", []),
    "another field": (b'x-error: {"message":"m","code":503}\n\n', []),
    "a comment": (b": error: busy\n\n", []),
    "the name of the event before": (b"event: ping\n\ndata: a\n\n", [b"a"]),
    "half a chunk": (b'data: {"choices":[{"del', []),
    "a chunk without a blank line": (b'data: {"choices":[]}\n', []),
    "half a field name": (b"da", []),
}


@pytest.mark.parametrize(("wire", "events"), NO_ERRORS.values(), ids=NO_ERRORS)
def test_everything_else_is_as_the_standard_says(wire: bytes, events: list[bytes]) -> None:
    for pieces in ([TEXT, wire], one_by_one(TEXT + wire), [TEXT + wire]):
        assert decode(*pieces)[:2] == ([TEXT[6:-2], *events], [])


# Where a body begins --------------------------------------------------------------------------------------------------

BLANKS = [b"", b"\n", b"\r\n\r\n", b"  ", b" \t\n  ", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n \r\n ", b"\n\xef\xbb\xbf "]


@pytest.mark.parametrize("blank", BLANKS, ids=repr)
def test_a_body_may_begin_with_a_bom_and_white_space(blank: bytes) -> None:
    wire = blank + b"data: a\n\ndata: b\n\n"
    assert decode(wire).events == decode(*one_by_one(wire)).events == [b"a", b"b"]


DOCUMENTS = {
    "JSON": b'{"id": "x", "choices": [{"message": {"content": "a"}}]}',
    "JSON in lines": b'{\n  "id": "x",\n\n  "choices": []\n}\n',
    "an array": b"[]",
    "a string": b'"a"',
    "HTML": b"\n<!DOCTYPE html>\n<html>\n\n<p>Bad gateway</p></html>\n",
    "text": b"upstream connect error",
    "text with a colon": b"upstream: gone",
    "gzip": b"\x1f\x8b\x08\x00\n\x9c",
}
STREAMS = {
    "nothing": b"",
    "blank lines": b"\n \r\n",
    "a comment": b": wait",
    "an event": b"data: a\n\n",
    "an event after text": b"one moment\n\ndata: a\n\n",
    "half an event": b'data: {"a":',
    "half a field name": b"da",
    "a field without data": b"retry: 3\n\n",
    "a field, then text": b"id: 3\n\nGone.\n\n",
}


@pytest.mark.parametrize(
    ("wire", "expected"),
    [*((wire, True) for wire in DOCUMENTS.values()), *((wire, False) for wire in STREAMS.values())],
    ids=[*DOCUMENTS, *STREAMS],
)
def test_a_body_without_any_line_of_a_stream_is_a_document(wire: bytes, expected: bool) -> None:
    assert decode(wire).is_document is expected
    assert decode(*one_by_one(wire)).is_document is expected


# The rules behind them ------------------------------------------------------------------------------------------------

_WORDS = [
    b"data",
    b"id",
    b"event",
    b"error",
    b":",
    b" ",
    b"\r",
    b"\n",
    b"\r\n",
    b"\n\n",
    b"{",
    b"}",
    b"[",
    b"x",
    b"\xff",
]
_WORDS += [b"\xef\xbb\xbf", b"\xef", b"data: a\n\n", b"event: error\n", OPENAIS, FLAT, PRETTY, b"<html>", b"data: \n\n"]
wires = st.binary() | st.lists(st.sampled_from(_WORDS), max_size=30).map(b"".join)


@settings(deadline=None, max_examples=400)
@given(wires, st.lists(st.integers(0, 9), max_size=60), st.integers(1, 60) | st.just(1 << 20))
@example(b"\xef\xbb\xbf \ndata: 1\n\n", [1] * 12, 8)
@example(b"data: \n\n<html>", [8], 40)
@example(b" \xef\xbb\xbf :a", [1], 1 << 20)
def test_cutting_changes_nothing(data: bytes, sizes: list[int], limit: int) -> None:
    pieces, rest = [], data
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    assert decode(*pieces, rest, limit=limit) == decode(data, limit=limit)


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"data: a\n", b"data:b\r\n", b": c\n", b"id: 1\n", b"event: e\n", b"\n", b"x\n"])))
def test_without_errors_the_events_are_the_standards(lines: list[bytes]) -> None:
    wire = b"".join(lines)
    assert decode(wire).events == SSEDecoder().feed_data(wire)


def test_what_is_not_json_reports_no_error() -> None:
    assert [find_error(data) for data in (b"", b"{", b'"[DONE]"', b"[7]", b'{"choices":[]}')] == [None] * 5
    assert find_error(b'{"error":"Lost"}') is not None
