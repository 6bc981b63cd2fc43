"""The bytes that each format sends to a client."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quart_openai_sse.errors import (
    ErrorValue,
    InvalidRequest,
    OpenAISSEError,
    ServerShutdown,
    UpstreamFailed,
    UpstreamTruncated,
)
from quart_openai_sse.formats import Format, end_error
from quart_openai_sse.formats.openai import OpenAIFormat
from quart_openai_sse.formats.registry import FORMATS, create_format
from quart_openai_sse.formats.text import TextFormat
from quart_openai_sse.logs.entries import RESERVED_EVENTS, Batch, End, Entry, Kind
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import chunk_text
from quart_openai_sse.protocol.sse import ServerSentEvent, SSEDecoder

# With spaces, unknown members and an unusual order, so that only the same bytes pass.
ROLE = b'{"choices": [{"delta": {"role": "assistant", "content": ""}, "index": 0}], "id":"c"}'
HI = b'{ "id":"c","choices":[{"index":0,"delta":{"content":"Hi"}}],"x":[1.0, 1e2] }'
THERE = b'{"choices":[{"index":0,"delta":{"content":" there"},"finish_reason":"stop"}]}'
USAGE = b'{"choices":[],"usage":{"total_tokens":3}}'

ENTRIES = [
    Entry(ROLE, t=0.1),
    Entry(HI, t=0.25),
    Entry(b'{"title":"Moon"}', t=0.3, kind=Kind.EVENT, name="sources"),
    Entry(THERE, t=1.23456),
    Entry(USAGE, t=1.3, usage=True),
]
BATCH = Batch(1, ENTRIES)

COMPLETED = End("completed", finish_reasons={0: "stop"}, usage={"total_tokens": 3})
FAILED = End("failed", "upstream_truncated", ErrorValue.of(UpstreamTruncated("It broke.")), finish_reasons={0: "stop"})
FAILED_WITHOUT_ERROR = End("failed", "lost")
STOPPED = End("stopped", "client_left", finish_reasons={0: "stop"}, usage={"total_tokens": 3})
ENDS = {"completed": COMPLETED, "failed": FAILED, "failed without error": FAILED_WITHOUT_ERROR, "stopped": STOPPED}


def decode(data: bytes) -> list[ServerSentEvent]:
    return SSEDecoder().feed(data)


# OpenAI's wire ------------------------------------------------------------------------------------------------------


def test_openais_wire_is_the_chunks_bytes_without_usage_and_app_events() -> None:
    assert OpenAIFormat().encode(BATCH, ids=False) == (
        b"data: " + ROLE + b"\n\ndata: " + HI + b"\n\ndata: " + THERE + b"\n\n"
    )


def test_the_usage_chunk_is_for_those_who_asked() -> None:
    assert OpenAIFormat(include_usage=True).encode(Batch(5, ENTRIES[4:]), ids=False) == b"data: " + USAGE + b"\n\n"
    assert OpenAIFormat().encode(Batch(5, ENTRIES[4:]), ids=False) == b""


def test_ids_are_places_in_the_stream_whatever_is_left_out() -> None:
    assert OpenAIFormat().encode(Batch(7, ENTRIES), ids=True) == (
        b"id: 7\ndata: " + ROLE + b"\n\nid: 8\ndata: " + HI + b"\n\nid: 10\ndata: " + THERE + b"\n\n"
    )


def test_a_chunk_of_many_lines_arrives_as_it_was() -> None:
    pretty = b'{\n  "choices": []\n}'
    wire = OpenAIFormat().encode(Batch(1, [Entry(pretty)]), ids=True)
    assert wire == b'id: 1\ndata: {\ndata:   "choices": []\ndata: }\n\n'
    assert decode(wire) == [ServerSentEvent(pretty.decode(), id="1")]


def test_openais_stream_is_done_only_when_it_is_completed() -> None:
    assert OpenAIFormat().end(COMPLETED, ids=False) == b"data: [DONE]\n\n"
    assert OpenAIFormat().end(COMPLETED, ids=True) == b"id: end\ndata: [DONE]\n\n"


@pytest.mark.parametrize("end", [FAILED, FAILED_WITHOUT_ERROR, STOPPED], ids=["failed", "without error", "stopped"])
def test_any_other_end_is_an_error_object_at_which_sdks_raise(end: End) -> None:
    wire = OpenAIFormat().end(end, ids=False)
    (event,) = decode(wire)
    assert (event.event, event.id) == ("message", "")
    assert b"[DONE]" not in wire
    body = json.decode(event.data.encode())
    assert list(body) == ["error"]
    assert {"message", "type", "param", "code"} <= body["error"].keys()
    assert OpenAIFormat().end(end, ids=True) == b"id: end\n" + wire


def test_openais_error_object_whole() -> None:
    assert OpenAIFormat().end(FAILED, ids=False) == (
        b'data: {"error":{"message":"It broke.","type":"upstream_error","param":null,"code":"upstream_truncated",'
        b'"user_message":"The AI service stopped before the answer was complete."}}\n\n'
    )
    assert OpenAIFormat().end(STOPPED, ids=False) == (
        b'data: {"error":{"message":"The stream was stopped: client_left.","type":"stream_stopped","param":null,'
        b'"code":"stopped","user_message":"The answer was stopped."}}\n\n'
    )


# Text for pages -----------------------------------------------------------------------------------------------------


def test_the_text_format_whole() -> None:
    assert TextFormat().encode(BATCH, ids=True) == (
        b'event: delta\nid: 2\ndata: {"text":"Hi","t":0.25}\n\n'
        b'event: sources\nid: 3\ndata: {"title":"Moon"}\n\n'
        b'event: delta\nid: 4\ndata: {"text":" there","t":1.235}\n\n'
    )


def test_the_text_format_without_ids() -> None:
    assert TextFormat().encode(Batch(1, ENTRIES[1:3]), ids=False) == (
        b'event: delta\ndata: {"text":"Hi","t":0.25}\n\nevent: sources\ndata: {"title":"Moon"}\n\n'
    )


TEXT_ENDS = {
    "completed": (COMPLETED, b'{"finish_reason":"stop","usage":{"total_tokens":3}}'),
    "completed without usage": (End("completed", finish_reasons={0: "x"}), b'{"finish_reason":"x","usage":null}'),
    "completed without a first choice": (End("completed"), b'{"finish_reason":null,"usage":null}'),
    "failed": (
        FAILED,
        b'{"error":{"message":"It broke.","type":"upstream_error","param":null,"code":"upstream_truncated",'
        b'"user_message":"The AI service stopped before the answer was complete."}}',
    ),
    "failed without error": (
        FAILED_WITHOUT_ERROR,
        b'{"error":{"message":"Something went wrong on our side. Please try again.","type":"server_error",'
        b'"param":null,"code":"internal_error",'
        b'"user_message":"Something went wrong on our side. Please try again."}}',
    ),
    "stopped": (STOPPED, b'{"reason":"client_left"}'),
}  # fmt: skip


@pytest.mark.parametrize(("end", "data"), TEXT_ENDS.values(), ids=TEXT_ENDS)
def test_the_text_formats_last_event_is_named_for_the_outcome(end: End, data: bytes) -> None:
    name = end.outcome.encode()
    assert TextFormat().end(end, ids=True) == b"event: " + name + b"\nid: end\ndata: " + data + b"\n\n"
    assert TextFormat().end(end, ids=False) == b"event: " + name + b"\ndata: " + data + b"\n\n"


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_no_event_is_named_error_and_only_completed_says_done(name: str, end: End) -> None:
    (event,) = decode(create_format(name).end(end, ids=True))
    assert event.event not in ("error", "open")
    assert event.id == "end"
    assert (event.data == "[DONE]") is (name == "openai" and end.outcome == "completed")


def test_app_events_cannot_take_the_names_of_ours_or_of_eventsources() -> None:
    assert {"delta", "completed", "failed", "stopped", "error", "open", "message", ""} <= RESERVED_EVENTS


# Whatever is in the log ---------------------------------------------------------------------------------------------

TEXTS: dict[str, tuple[Any, str]] = {
    "content": ({"choices": [{"index": 0, "delta": {"content": "x"}}]}, "x"),
    "refusal": ({"choices": [{"index": 0, "delta": {"refusal": "x"}}]}, "x"),
    "refusal beside empty content": ({"choices": [{"delta": {"content": "", "refusal": "x"}}]}, "x"),
    "a whole message": ({"choices": [{"index": 0, "message": {"content": "x"}}]}, "x"),
    "a whole message beside no delta": ({"choices": [{"delta": None, "message": {"content": "x"}}]}, "x"),
    "index left out": ({"choices": [{"delta": {"content": "x"}}]}, "x"),
    "index null": ({"choices": [{"index": None, "delta": {"content": "x"}}]}, "x"),
    "the second choice": ({"choices": [{"index": 1, "delta": {"content": "x"}}]}, ""),
    "the second choice first": (
        {"choices": [{"index": 1, "delta": {"content": "y"}}, {"index": 0, "delta": {"content": "x"}}]},
        "x",
    ),
    "a role": ({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}, ""),
    "reasoning": ({"choices": [{"index": 0, "delta": {"reasoning_content": "x"}}]}, ""),
    "no delta": ({"choices": [{"index": 0}]}, ""),
    "delta null": ({"choices": [{"index": 0, "delta": None}]}, ""),
    "delta a list": ({"choices": [{"index": 0, "delta": ["content"]}]}, ""),
    "delta text": ({"choices": [{"index": 0, "delta": "x"}]}, ""),
    "content a number": ({"choices": [{"delta": {"content": 5}}]}, ""),
    "content a list": ({"choices": [{"delta": {"content": [{"text": "x"}]}}]}, ""),
    "content a number beside a refusal": ({"choices": [{"delta": {"content": 5, "refusal": "x"}}]}, "x"),
    "content true": ({"choices": [{"delta": {"content": True}}]}, ""),
    "a choice null": ({"choices": [None]}, ""),
    "a choice null beside another": ({"choices": [None, {"delta": {"content": "x"}}]}, "x"),
    "a choice text": ({"choices": ["x"]}, ""),
    "index a list": ({"choices": [{"index": [1], "delta": {"content": "x"}}]}, ""),
    "choices null": ({"choices": None}, ""),
    "choices a number": ({"choices": 5}, ""),
    "choices text": ({"choices": "x"}, ""),
    "choices an object": ({"choices": {"index": 0}}, ""),
    "no choices": ({}, ""),
    "a list": ([], ""),
    "null": (None, ""),
    "half an emoji": ({"choices": [{"delta": {"content": "\ud83d"}}]}, "\ud83d"),
}


@pytest.mark.parametrize(("chunk", "text"), TEXTS.values(), ids=TEXTS)
def test_a_chunk_says_in_words_and_odd_ones_say_nothing(chunk: Any, text: str) -> None:
    data = json.encode(chunk)
    assert chunk_text(data) == text
    for entry in (Entry(data), Entry(data, usage=True)):
        wire = TextFormat().encode(Batch(1, [entry]), ids=True)
        if text:
            assert wire == b"event: delta\nid: 1\ndata: " + json.encode({"text": text, "t": 0.0}) + b"\n\n"
        else:
            assert wire == b""


@pytest.mark.parametrize("data", [b"", b"not JSON", b'{"choices": [', b"\xff", b'{"a":' * 100_000], ids=range(5))
def test_what_is_no_chunk_says_nothing(data: bytes) -> None:
    assert chunk_text(data) == ""


_data = st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(), max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "index", "delta", "content", "refusal", "message"]), inner)
    ),
).map(json.encode)
_times = st.floats(0, 1e6)
_entries = st.builds(Entry, _data, _times, st.booleans()) | st.builds(
    Entry, _data, _times, kind=st.just(Kind.EVENT), name=st.sampled_from(["sources", "späte Ereignisse"])
)
_texts = st.text(st.characters(), max_size=5)
_refusals = st.builds(
    UpstreamFailed, _texts, status=st.sampled_from([400, 429, 502]), type=_texts, code=_texts, param=_texts
)
_errors = st.none() | st.builds(
    ErrorValue.of, st.sampled_from([OpenAISSEError("\ud83d"), ServerShutdown()]) | _refusals
)
_ends = st.builds(
    End,
    st.sampled_from(["completed", "failed", "stopped"]),
    _texts,
    _errors,
    st.dictionaries(st.integers(0, 3), _texts),
    st.none() | st.dictionaries(_texts, st.integers() | _texts),
)


@settings(deadline=None)
@given(
    st.lists(_entries, max_size=5), _ends, st.integers(1, 10**6), st.booleans(), st.sampled_from(sorted(FORMATS))
)  # fmt: skip
def test_whatever_is_in_the_log_becomes_at_most_one_event_per_entry_and_one_end(
    entries: list[Entry], end: End, first_id: int, ids: bool, name: str
) -> None:
    spoken = create_format(name, include_usage=True)
    read = []
    for number, entry in enumerate(entries, first_id):
        events = decode(spoken.encode(Batch(number, [entry]), ids=ids))
        assert len(events) <= 1
        assert all(event.id == (str(number) if ids else "") for event in events)
        read += events
    (last,) = decode(spoken.end(end, ids=ids))
    assert last.id == ("end" if ids else "")
    # A batch is its entries: how the log cuts a stream into batches is not to be seen.
    whole = decode(spoken.encode(Batch(first_id, entries, end), ids=ids) + spoken.end(end, ids=ids))
    assert whole == [*read, last]


# Which format -------------------------------------------------------------------------------------------------------


def test_a_format_is_made_by_name() -> None:
    made: list[Format] = [create_format(name) for name in ("openai", "text")]
    assert [type(each) for each in made] == [OpenAIFormat, TextFormat]
    assert not any(each.replays for each in made)
    assert create_format("openai", include_usage=True).encode(Batch(5, ENTRIES[4:]), ids=False) != b""
    assert create_format("openai").encode(Batch(5, ENTRIES[4:]), ids=False) == b""
    assert create_format("text", include_usage=True).encode(Batch(5, ENTRIES[4:]), ids=False) == b""


@pytest.mark.parametrize("name", ["", "OpenAI", "xml", "text\n"])
def test_an_unknown_format_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"format must be one of openai, text\.") as raised:
        create_format(name)
    assert raised.value.param == "format"


def test_a_reader_is_told_the_ends_own_error() -> None:
    assert end_error(COMPLETED) is None
    assert str(end_error(FAILED)) == FAILED.error.message
    assert type(end_error(FAILED_WITHOUT_ERROR)) is OpenAISSEError
    stopped = end_error(STOPPED)
    assert stopped is not None
    assert (stopped.code, stopped.should_retry) == ("stopped", False)
