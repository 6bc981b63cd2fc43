"""The SSE codec: the standard's cases, and the rules that hold for any bytes and any text."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quart_openai_sse.protocol.sse import (
    HEARTBEAT,
    EventTooLarge,
    RawEvent,
    ServerSentEvent,
    SSEDecoder,
    encode,
    encode_all,
    encode_data,
)


class Decoded(NamedTuple):
    """What a decoder made of its pieces."""

    events: list[ServerSentEvent]
    last_event_id: str = ""
    retry: int | None = None
    too_large: bool = False


def decode(*pieces: bytes, limit: int = 1 << 20) -> Decoded:
    decoder = SSEDecoder(max_event_bytes=limit)
    raws: list[RawEvent] = []
    too_large = False
    for piece in pieces:
        try:
            raws += decoder.feed_raw(piece)
        except EventTooLarge as error:
            raws += error.events
            too_large = True
    events = [
        ServerSentEvent(
            raw.data.decode("utf-8", "replace"),
            raw.event.decode("utf-8", "replace") or "message",
            raw.id.decode("utf-8", "replace"),
        )
        for raw in raws
    ]
    return Decoded(events, decoder.last_event_id, decoder.retry, too_large)


def one_by_one(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def message(data: str, *, event: str = "message", id: str = "") -> ServerSentEvent:  # noqa: A002 (the standard's word)
    return ServerSentEvent(data, event, id)


# The standard's cases -----------------------------------------------------------------------------------------------

CASES = {
    "nothing": (b"", Decoded([])),
    "an event": (b"data: hello\n\n", Decoded([message("hello")])),
    "all fields": (
        b"event: add\nid: 7\nretry: 300\ndata: x\n\n",
        Decoded([message("x", event="add", id="7")], "7", 300),
    ),
    "data lines are joined with LF": (b"data: a\ndata: b\ndata:\n\n", Decoded([message("a\nb\n")])),
    "other lines between data lines": (b"data: a\nid: 1\n: c\ndata: b\n\n", Decoded([message("a\nb", id="1")], "1")),
    "CRLF ends a line": (b"data: a\r\ndata: b\r\n\r\n", Decoded([message("a\nb")])),
    "CR alone ends a line": (b"data: a\rdata: b\r\r", Decoded([message("a\nb")])),
    "line ends mixed": (b"data: a\r\ndata: b\rdata: c\n\r\n", Decoded([message("a\nb\nc")])),
    "LF then CR are two line ends": (b"data: a\n\rdata: b\n\n", Decoded([message("a"), message("b")])),
    "no other line ends": (
        "data: a\u2028b\u2029c\x0bd\x0ce\x85f\x1cg\x1dh\x1ei\x00j\n\n".encode(),
        Decoded([message("a\u2028b\u2029c\x0bd\x0ce\x85f\x1cg\x1dh\x1ei\x00j")]),
    ),
    "one space after the colon goes": (b"data:a\ndata: b\ndata:  c\n\n", Decoded([message("a\nb\n c")])),
    "a tab after the colon stays": (b"data:\ta\n\n", Decoded([message("\ta")])),
    "a colon in the value": (b"data: a: b:c\n\n", Decoded([message("a: b:c")])),
    "a line without colon is a field without value": (b"data\n\n", Decoded([message("")])),
    "two of them": (b"data\ndata\n\n", Decoded([message("\n")])),
    "an empty data line dispatches": (b"data:\n\n", Decoded([message("")])),
    "no data, no dispatch": (b"event: add\n\n", Decoded([])),
    "the event type is reset by a blank line": (b"event: add\n\ndata: a\n\n", Decoded([message("a")])),
    "and after a dispatch": (
        b"event: add\ndata: a\n\ndata: b\n\n",
        Decoded([message("a", event="add"), message("b")]),
    ),
    "the last event type counts": (b"event: a\nevent: b\ndata: x\n\n", Decoded([message("x", event="b")])),
    "an empty event type is message": (b"event: a\nevent\ndata: x\n\n", Decoded([message("x")])),
    "a block with only an id": (b"id: 1\n\n", Decoded([], "1")),
    "it counts for what follows": (b"id: 1\n\ndata: a\n\n", Decoded([message("a", id="1")], "1")),
    "an id lasts": (b"id: 1\ndata: a\n\ndata: b\n\n", Decoded([message("a", id="1"), message("b", id="1")], "1")),
    "an empty id resets it": (b"id: 1\ndata: a\n\nid\ndata: b\n\n", Decoded([message("a", id="1"), message("b")])),
    "an id with NUL is ignored": (b"id: 1\nid: 2\x003\ndata: a\n\n", Decoded([message("a", id="1")], "1")),
    "NUL elsewhere is text": (b"event: a\x00\ndata: \x00\n\n", Decoded([message("\0", event="a\0")])),
    "an id need not be a number": ("id: ü 1\ndata: a\n\n".encode(), Decoded([message("a", id="ü 1")], "ü 1")),
    "an incomplete block is discarded, and its id": (
        b"id: 1\ndata: a\n\nid: 2\ndata: b\n",
        Decoded([message("a", id="1")], "1"),
    ),
    "an incomplete line is discarded": (b"data: a\n\ndata: b", Decoded([message("a")])),
    "a block cut before its last LF": (b"data: a\r\n\r", Decoded([message("a")])),
    "comments": (b": one\n:\n::\ndata: a\n: two\n\n:\n", Decoded([message("a")])),
    "a comment and a blank line dispatch nothing": (b": ping\n\n: ping\n\n", Decoded([])),
    "unknown fields are ignored": (b"Data: a\n data: b\ndata : c\nfoo: d\nDATA\n\n", Decoded([])),
    "a block with only retry": (b"retry: 10\n\n", Decoded([], retry=10)),
    "retry counts without a blank line": (b"retry: 10\n", Decoded([], retry=10)),
    "the last valid retry counts": (b"retry: 10\nretry: 020\nretry: x\n", Decoded([], retry=20)),
    "a BOM goes": (b"\xef\xbb\xbfdata: a\n\n", Decoded([message("a")])),
    "a BOM before a comment": (b"\xef\xbb\xbf:\ndata: a\n\n", Decoded([message("a")])),
    "a BOM before a blank line": (b"\xef\xbb\xbf\ndata: a\n\n", Decoded([message("a")])),
    "one BOM only": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", Decoded([])),
    "a BOM later is text": (b":\n\xef\xbb\xbfdata: a\n\ndata: \xef\xbb\xbf\n\n", Decoded([message("\ufeff")])),
    "half a BOM is text": (b"\xef\xbbdata: a\n\n", Decoded([])),
    "invalid UTF-8 is replaced": (
        b"data: a\xffb\xe2\x82\nevent: \xc3\nid: \xf0\x9f\ndata: c\n\n",
        Decoded([message("a\ufffdb\ufffd\nc", event="\ufffd", id="\ufffd")], "\ufffd"),
    ),
    "blank lines": (b"\n\r\n\r\n\n", Decoded([])),
    "many events": (b"data: a\n\n\ndata: b\n\n", Decoded([message("a"), message("b")])),
}


@pytest.mark.parametrize(("wire", "expected"), CASES.values(), ids=CASES)
def test_the_standards_cases_whole_and_byte_by_byte(wire: bytes, expected: Decoded) -> None:
    assert decode(wire) == expected
    assert decode(*one_by_one(wire)) == expected


@pytest.mark.parametrize(
    "value",
    ["+5", "-5", "1_0", "٣", "5 ", " 5", "0x5", "5.0", "1e3", "", "²", "5\0", "9" * 16, "9" * 5000],
    ids=repr,
)
def test_a_retry_that_is_no_ascii_number_of_sane_length_is_ignored(value: str) -> None:
    assert decode(f"retry: 7\nretry: {value}\ndata: a\n\n".encode()) == Decoded([message("a")], retry=7)


def test_feed_gives_text_and_feed_raw_bytes_in_which_absent_fields_are_empty() -> None:
    wire = b"data: a\n\nevent: e\nid: 1\ndata: \xff\n\n"
    assert SSEDecoder().feed(wire) == [message("a"), message("\ufffd", event="e", id="1")]
    assert SSEDecoder().feed_raw(wire) == [RawEvent(b"a", b"", b""), RawEvent(b"\xff", b"e", b"1")]


def test_a_crlf_cut_between_two_reads_is_one_line_end_even_with_an_empty_read_between() -> None:
    assert decode(b"data: a\r", b"", b"\n", b"\r", b"", b"\ndata: b\n\n") == Decoded([message("a"), message("b")])


def test_cr_dispatches_at_once_without_waiting_for_lf() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\r\r") == [message("a")]
    assert decoder.feed(b"\ndata: b\r\n\r") == [message("b")]


def test_an_id_counts_from_its_blank_line_on() -> None:
    decoder = SSEDecoder()
    decoder.feed(b"id: 1\ndata: a\n\nid: 2\ndata: b\n")
    assert decoder.last_event_id == "1"
    decoder.feed(b"\n")
    assert decoder.last_event_id == "2"


# Limits -------------------------------------------------------------------------------------------------------------

TOO_LARGE = {
    "an endless line": b"data: " + b"x" * 100,
    "a line that ends": b"data: " + b"x" * 100 + b"\n\n",
    "an endless line behind another": b"data: " + b"x" * 50 + b"\ndata: " + b"x" * 50,
    "an endless comment": b":" + b"x" * 100,
    "a line without colon": b"x" * 100,
    "an endless id": b"id: " + b"x" * 100 + b"\n\n",
    "endless data lines": b"data\n" * 30,
    "endless unknown lines": b"x:1\n" * 30,
    "endless event lines": b"event: a\n" * 30,
}


@pytest.mark.parametrize("wire", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_never_dispatches_is_bounded(wire: bytes) -> None:
    expected = Decoded([message("a")], too_large=True)
    assert decode(b"data: a\n\n" + wire, limit=64) == expected
    assert decode(b"data: a\n\n", *one_by_one(wire), limit=64) == expected


def test_an_event_may_be_as_large_as_the_limit_and_comments_do_not_count() -> None:
    wire = b"data: " + b"x" * 10 + b"\n" + HEARTBEAT * 100 + b"\n"
    assert decode(wire, limit=17) == Decoded([message("x" * 10)])
    assert decode(b"data: " + b"x" * 10 + b"\n\n", limit=16) == Decoded([message("x" * 10)])
    assert decode(b"data: " + b"x" * 11 + b"\n\n", limit=16) == Decoded([], too_large=True)


def test_a_long_stream_of_small_events_is_not_too_large() -> None:
    assert len(decode(b": ping\ndata: a\n\n" * 1000, limit=32).events) == 1000


def test_after_an_event_too_large_the_decoder_is_of_no_use() -> None:
    decoder = SSEDecoder(max_event_bytes=8)
    with pytest.raises(EventTooLarge, match="larger than 8 bytes") as first:
        decoder.feed(b"data: a\n\ndata: 12345")
    assert first.value.events == [RawEvent(b"a", b"", b"")]
    for more in (b"\n\n", b"", b"data: b\n\n"):
        with pytest.raises(EventTooLarge) as later:
            decoder.feed(more)
        assert list(later.value.events) == []


def test_the_limit_does_not_depend_on_where_a_bom_is_cut() -> None:
    wire = b"\xef\xbb\xbfdata: 12345\n\n"
    for limit in range(8, 18):
        assert decode(wire, limit=limit) == decode(*one_by_one(wire), limit=limit), limit


def test_a_megabyte_byte_by_byte_takes_linear_time() -> None:
    # Quadratic, each of these would copy half a terabyte: no clock is needed to notice.
    size = 1 << 20
    decoder = SSEDecoder(max_event_bytes=2 * size)
    decoder.feed_raw(b"data:")
    for _ in range(size):
        assert decoder.feed_raw(b"x") == []
    assert decoder.feed_raw(b"\n\n") == [RawEvent(b"x" * size, b"", b"")]


def test_a_megabyte_of_lines_in_one_read_takes_linear_time() -> None:
    lines = 1 << 18
    (event,) = SSEDecoder(max_event_bytes=1 << 22).feed(b"data\n" * lines + b"\n")
    assert event == message("\n" * (lines - 1))
    assert SSEDecoder().feed(b"\r" * (1 << 20)) == []


# The rules behind them ----------------------------------------------------------------------------------------------

_WORDS = [b"data", b"id", b"event", b"retry", b":", b" ", b"\r", b"\n", b"\r\n", b"\n\n", b"\0", b"1", b"x", b"\xff"]
_WORDS += [b"\xef\xbb\xbf", b"\xef", "é".encode(), "\u2028".encode(), b"data: a\n\n", b"id: 1\n"]
wires = st.binary() | st.lists(st.sampled_from(_WORDS), max_size=40).map(b"".join)
sizes = st.lists(st.integers(0, 9), max_size=60)
any_text = st.text(st.characters())
"""With lone surrogates, which strings of Python may have."""


@settings(deadline=None)
@given(wires, sizes, st.integers(1, 40) | st.just(1 << 20))
@example(b"\xef\xbb\xbfdata: 1\n\n", [1] * 12, 8)
@example(b"data: a\r\n\r\ndata: b\r\r\n", [9, 1, 1, 9], 40)
def test_cutting_never_changes_the_events_nor_what_is_too_large(data: bytes, pieces: list[int], limit: int) -> None:
    assert decode(*cut(data, pieces), limit=limit) == decode(data, limit=limit)


reads = st.lists(
    st.sampled_from(
        [
            *(b"data: a\n\n", b"data: b\n\ndata: c\n\n", b"data: \n\n", b"data: d\r\n\n", b"data: e\rf\n\n"),
            *(b"data:x\n\n", b"data: g\nid: 1\n\n", b"data: h\n\nid: 2\n\n", b": i\n\n", b"data: j\n\n\n", b"k\n\n"),
            *(b"data: l", b"\n", b"\n\n", b"\r", b"\r\n", b"id: 3\n", b"event: m\n", b"\xef\xbb\xbf", b":"),
            b"data: " + b"n" * 30 + b"\n\n",
        ]
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=500)
@given(reads, st.sampled_from([20, 1 << 20]))
@example([b"data: a\n\n", b"\xef\xbb\xbf"], 20)
def test_the_data_alone_is_that_of_the_events(pieces: list[bytes], limit: int) -> None:
    whole, alone = SSEDecoder(max_event_bytes=limit), SSEDecoder(max_event_bytes=limit)
    for piece in [*pieces, b"data: last\n\n"]:
        outcomes = []
        for feed in (lambda data: [raw.data for raw in whole.feed_raw(data)], alone.feed_data):
            try:
                outcomes.append(feed(piece))
            except EventTooLarge as error:
                outcomes.append(("too large", error.events))
        assert outcomes[0] == outcomes[1]
        assert alone.last_event_id == whole.last_event_id


def by_the_standard(data: bytes) -> Decoded:
    """A decoder of whole streams, written down clause by clause."""
    text = data.decode("utf-8-sig", "replace")
    lines = re.split("\r\n|\r|\n", text)[:-1]
    events: list[ServerSentEvent] = []
    buffer, event_type, id_buffer, last_id, retry = "", "", "", "", None
    for line in lines:
        name, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if line == "":
            last_id = id_buffer
            if buffer:
                events.append(message(buffer[:-1], event=event_type or "message", id=last_id))
            buffer, event_type = "", ""
        elif line.startswith(":"):
            pass
        elif name == "event":
            event_type = value
        elif name == "data":
            buffer += value + "\n"
        elif name == "id" and "\0" not in value:
            id_buffer = value
        elif name == "retry" and re.fullmatch("[0-9]{1,15}", value):
            retry = int(value)
    return Decoded(events, last_id, retry)


@settings(deadline=None)
@given(wires)
def test_any_bytes_decode_as_the_standard_says(data: bytes) -> None:
    assert decode(data) == by_the_standard(data)


@settings(deadline=None)
@given(any_text, any_text, any_text, st.none() | st.integers(0, 10**14))
def test_encoding_gives_exactly_one_event_or_refuses(data: str, event: str, id: str, retry: int | None) -> None:  # noqa: A002
    sse = ServerSentEvent(data, event, id, retry)
    if any(forbidden in event + id for forbidden in "\r\n\0"):
        with pytest.raises(ValueError, match="cannot hold CR, LF or NUL"):
            encode(sse)
        return
    wire = encode(sse)
    expected = message(_sent(re.sub("\r\n|\r", "\n", data)), event=_sent(event) or "message", id=_sent(id))
    assert decode(wire) == Decoded([expected], _sent(id), retry)
    after = message("after", id=_sent(id))
    assert decode(b"data: before\n\n", wire, b"data: after\n\n").events == [message("before"), expected, after]


def _sent(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


@settings(deadline=None)
@given(any_text)
def test_the_event_of_a_str_data_is_the_event_of_its_bytes(data: str) -> None:
    assert encode(ServerSentEvent(data)) == encode_data(data.encode("utf-8", "replace"))


@given(st.lists(st.binary(max_size=5) | st.sampled_from([b"", b"\n", b"\r", b"a\r\nb", b"\n\ndata: "])))
def test_many_events_are_the_same_as_each_of_them(data: list[bytes]) -> None:
    assert encode_all(data) == b"".join(map(encode_data, data))


ENCODED = {
    "data": (ServerSentEvent("a"), b"data: a\n\n"),
    "no data": (ServerSentEvent(), b"data: \n\n"),
    "all fields": (ServerSentEvent("a", "add", "7", 300), b"event: add\nid: 7\nretry: 300\ndata: a\n\n"),
    "retry 0": (ServerSentEvent("a", retry=0), b"retry: 0\ndata: a\n\n"),
    "lines": (ServerSentEvent("a\nb\r\nc\rd\n"), b"data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"),
    "no other line ends": (ServerSentEvent("a\u2028b\x0b\x85"), "data: a\u2028b\x0b\x85\n\n".encode()),
    "a leading space stays": (ServerSentEvent(" a"), b"data:  a\n\n"),
    "what looks like a field": (ServerSentEvent("a\n\nid: 1"), b"data: a\ndata: \ndata: id: 1\n\n"),
    "half an emoji": (ServerSentEvent("a\ud83d"), b"data: a?\n\n"),
}


@pytest.mark.parametrize(("sse", "wire"), ENCODED.values(), ids=ENCODED)
def test_an_event_is_encoded_so(sse: ServerSentEvent, wire: bytes) -> None:
    assert encode(sse) == wire


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "\0", "1\r\ndata: x"], ids=repr)
@pytest.mark.parametrize("field", ["event", "id"])
def test_no_field_can_be_injected(field: str, bad: str) -> None:
    with pytest.raises(ValueError, match=f"The {field} of a server-sent event cannot hold CR, LF or NUL"):
        encode(ServerSentEvent("data", **{field: bad}))


def test_a_negative_retry_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        encode(ServerSentEvent("a", retry=-1))


def test_heartbeats_may_stand_anywhere_and_dispatch_nothing() -> None:
    wire = HEARTBEAT.join([b"", b"id: 1\ndata: a\n", b"data: b\n\n", b"data: c\n\n", b""])
    assert decode(wire) == Decoded([message("a\nb", id="1"), message("c", id="1")], "1")
    assert not HEARTBEAT.endswith(b"\n\n")
