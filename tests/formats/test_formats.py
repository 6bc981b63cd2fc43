"""The bytes that each format sends to a client."""

from __future__ import annotations

from itertools import product
from typing import Any

import httpx
import openai
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
from quart_openai_sse.formats import Format, Reading, SSEFormat, entry_text
from quart_openai_sse.formats.openai import OpenAIFormat
from quart_openai_sse.formats.registry import FORMATS, Formats
from quart_openai_sse.formats.text import TextFormat
from quart_openai_sse.logs.entries import RESERVED_EVENTS, About, Batch, End, Entry, Kind
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.sse import RawEvent, ServerSentEvent, SSEDecoder, encode, encode_data

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
    assert OpenAIFormat(Reading()).encode(BATCH) == (
        b"data: " + ROLE + b"\n\ndata: " + HI + b"\n\ndata: " + THERE + b"\n\n"
    )


def test_the_usage_chunk_is_for_those_who_asked() -> None:
    assert OpenAIFormat(Reading(include_usage=True)).encode(Batch(5, ENTRIES[4:])) == b"data: " + USAGE + b"\n\n"
    assert OpenAIFormat(Reading()).encode(Batch(5, ENTRIES[4:])) == b""


def test_ids_are_places_in_the_stream_whatever_is_left_out() -> None:
    assert OpenAIFormat(Reading(ids=True)).encode(Batch(7, ENTRIES)) == (
        b"id: 7\ndata: " + ROLE + b"\n\nid: 8\ndata: " + HI + b"\n\nid: 10\ndata: " + THERE + b"\n\n"
    )


def test_a_chunk_of_many_lines_arrives_as_it_was() -> None:
    pretty = b'{\n  "choices": []\n}'
    wire = OpenAIFormat(Reading(ids=True)).encode(Batch(1, [Entry(pretty)]))
    assert wire == b'id: 1\ndata: {\ndata:   "choices": []\ndata: }\n\n'
    assert decode(wire) == [ServerSentEvent(pretty.decode(), id="1")]


@pytest.mark.parametrize("data", [b"a\rid: 9", b"a\nid: 9", b"a\r\n\r\ndata: b", b"a\r\rdata: b"], ids=range(4))
@pytest.mark.parametrize("ids", [False, True])
def test_no_line_of_a_chunk_can_be_a_field(data: bytes, ids: bool) -> None:
    wire = OpenAIFormat(Reading(ids=ids)).encode(Batch(1, [Entry(data)]))
    lines = data.decode().replace("\r\n", "\n").replace("\r", "\n")
    assert decode(wire) == [ServerSentEvent(lines, id="1" if ids else "")]


def test_openais_stream_is_done_only_when_it_is_completed() -> None:
    assert OpenAIFormat(Reading()).end(COMPLETED) == b"data: [DONE]\n\n"
    assert OpenAIFormat(Reading(ids=True)).end(COMPLETED) == b"id: end\ndata: [DONE]\n\n"


@pytest.mark.parametrize("end", [FAILED, FAILED_WITHOUT_ERROR, STOPPED], ids=["failed", "without error", "stopped"])
def test_any_other_end_is_an_error_object_at_which_sdks_raise(end: End) -> None:
    wire = OpenAIFormat(Reading()).end(end)
    (event,) = decode(wire)
    assert (event.event, event.id) == ("message", "")
    assert b"[DONE]" not in wire
    body = json.decode(event.data.encode())
    assert list(body) == ["error"]
    assert {"message", "type", "param", "code"} <= body["error"].keys()
    assert OpenAIFormat(Reading(ids=True)).end(end) == b"id: end\n" + wire


def test_openais_error_object_whole() -> None:
    assert OpenAIFormat(Reading()).end(FAILED) == (
        b'data: {"error":{"message":"It broke.","type":"upstream_error","param":null,"code":"upstream_truncated",'
        b'"user_message":"The AI service stopped before the answer was complete."}}\n\n'
    )
    assert OpenAIFormat(Reading()).end(STOPPED) == (
        b'data: {"error":{"message":"The stream was stopped: client_left.","type":"stream_stopped","param":null,'
        b'"code":"stopped","user_message":"The answer was stopped."}}\n\n'
    )


# An answer that was not streamed --------------------------------------------------------------------------------------

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGE = {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": [CALL, {**CALL, "index": 7}]}
ANSWER = {
    "id": "c",
    "object": "chat.completion",
    "created": 5,
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "tool_calls", "logprobs": None}],
    "usage": {"total_tokens": 3},
    "x": [1.0, 2],
}
ANSWERED = Batch(1, [Entry(json.encode(ANSWER), t=0.5, kind=Kind.ANSWER)])


def test_an_answer_that_was_not_streamed_is_one_chunk_for_openais_clients() -> None:
    (event,) = decode(OpenAIFormat(Reading()).encode(ANSWERED))
    delta = {**MESSAGE, "tool_calls": [{**CALL, "index": 0}, {**CALL, "index": 1}]}
    assert json.decode(event.data.encode()) == {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 5,
        "choices": [{"index": 0, "delta": delta, "finish_reason": "tool_calls", "logprobs": None}],
        "x": [1.0, 2],
    }


def test_its_usage_is_a_chunk_of_its_own_for_a_client_that_asked() -> None:
    wire = OpenAIFormat(Reading(ids=True, include_usage=True)).encode(ANSWERED)
    chunk, usage = SSEDecoder().feed_raw(wire)
    assert (chunk.id, usage.id) == (b"", b"1")
    assert "usage" not in json.decode(chunk.data)
    assert json.decode(usage.data) == {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 5,
        "choices": [],
        "usage": {"total_tokens": 3},
        "x": [1.0, 2],
    }


def test_openais_sdk_reads_it_as_a_stream() -> None:
    wire = OpenAIFormat(Reading(include_usage=True))
    body = wire.encode(ANSWERED) + wire.end(COMPLETED)

    def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=body)

    with (
        openai.OpenAI(
            api_key="any", base_url="http://x", http_client=httpx.Client(transport=httpx.MockTransport(respond))
        ) as client,
        client.chat.completions.stream(model="m", messages=[]) as stream,
    ):
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == "Hi"
    assert completion.choices[0].finish_reason == "tool_calls"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 3


@pytest.mark.parametrize("data", [b"no JSON", b"[]", b"{}", b'{"choices":5}', b"\xff"], ids=range(5))
def test_an_answer_that_is_none_passes_unchanged(data: bytes) -> None:
    assert OpenAIFormat(Reading()).encode(Batch(1, [Entry(data, kind=Kind.ANSWER)])) == encode_data(data)


def test_an_answer_that_was_not_streamed_is_one_delta_of_text() -> None:
    wire = b'event: delta\nid: 1\ndata: {"text":"Hi","t":0.5}\n\n'
    assert TextFormat(Reading(ids=True)).encode(ANSWERED) == wire


# Text for pages -----------------------------------------------------------------------------------------------------


def test_the_text_format_whole() -> None:
    assert TextFormat(Reading(ids=True)).encode(BATCH) == (
        b'event: delta\nid: 2\ndata: {"text":"Hi","t":0.25}\n\n'
        b'event: sources\nid: 3\ndata: {"title":"Moon"}\n\n'
        b'event: delta\nid: 4\ndata: {"text":" there","t":1.235}\n\n'
    )


def test_the_text_format_without_ids() -> None:
    assert TextFormat(Reading()).encode(Batch(1, ENTRIES[1:3])) == (
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
    assert TextFormat(Reading(ids=True)).end(end) == b"event: " + name + b"\nid: end\ndata: " + data + b"\n\n"
    assert TextFormat(Reading()).end(end) == b"event: " + name + b"\ndata: " + data + b"\n\n"


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_no_event_is_named_error_and_only_completed_says_done(name: str, end: End) -> None:
    (event,) = decode(FORMATS[name](Reading(ids=True)).end(end))
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
    "index left out": ({"choices": [{"delta": {"content": "x"}}]}, "x"),
    "index null": ({"choices": [{"index": None, "delta": {"content": "x"}}]}, "x"),
    "a choice that is counted by chunks": ({"choices": [{"index": 1, "delta": {"content": "x"}}]}, "x"),
    "a role": ({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}, ""),
    "reasoning": ({"choices": [{"index": 0, "delta": {"reasoning_content": "x"}}]}, ""),
    "no delta": ({"choices": [{"index": 0}]}, ""),
    "delta null": ({"choices": [{"index": 0, "delta": None}]}, ""),
    "delta a list": ({"choices": [{"index": 0, "delta": ["content"]}]}, ""),
    "delta text": ({"choices": [{"index": 0, "delta": "x"}]}, ""),
    "content a number": ({"choices": [{"delta": {"content": 5}}]}, ""),
    "content a list": ({"choices": [{"delta": {"content": [{"text": "x"}]}}]}, "x"),
    "content a number beside a refusal": ({"choices": [{"delta": {"content": 5, "refusal": "x"}}]}, "x"),
    "content true": ({"choices": [{"delta": {"content": True}}]}, ""),
    "a choice null": ({"choices": [None]}, ""),
    "a choice null beside another": ({"choices": [None, {"delta": {"content": "x"}}]}, "x"),
    "a choice text": ({"choices": ["x"]}, ""),
    "index a list": ({"choices": [{"index": [1], "delta": {"content": "x"}}]}, "x"),
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
    for entry in (Entry(data), Entry(data, usage=True)):
        assert entry_text(entry) == text
        deltas = [event for event in events_of(entry) if event.event == "delta"]
        assert [json.decode(event.data.encode())["text"] for event in deltas] == ([text] if text else [])


def choice(delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


EVENTS: dict[str, tuple[Any, Kind, list[tuple[str, Any]]]] = {
    "reasoning and text": (
        choice({"reasoning": "Hm.", "content": "x"}),
        Kind.CHUNK,
        [("reasoning", {"text": "Hm.", "t": 1.5}), ("delta", {"text": "x", "t": 1.5})],
    ),
    "a refusal": (choice({"refusal": "No."}), Kind.CHUNK, [("delta", {"text": "No.", "t": 1.5, "refusal": True})]),
    "parts": (
        choice({"content": [{"type": "thinking", "thinking": "a"}, {"type": "image_url"}]}),
        Kind.CHUNK,
        [("reasoning", {"text": "a", "t": 1.5}), ("details", {"images": [{"type": "image_url"}], "t": 1.5})],
    ),
    "citations without a choice": (
        {"choices": [], "citations": ["https://a.example"]},
        Kind.CHUNK,
        [("details", {"citations": ["https://a.example"], "t": 1.5})],
    ),
    "a message beside a delta": (
        {"choices": [{"delta": {"content": "x"}, "message": {"content": "all of it"}}]},
        Kind.CHUNK,
        [("delta", {"text": "x", "t": 1.5})],
    ),
    "a message that repeats deltas": ({"choices": [{"message": {"content": "all of it"}}]}, Kind.CHUNK, []),
    "a message without deltas": (
        {"choices": [{"message": {"content": "x"}}]},
        Kind.MESSAGE,
        [("delta", {"text": "x", "t": 1.5})],
    ),
    "an answer": (
        {"choices": [{"message": {"content": "x"}, "delta": {"content": ""}}]},
        Kind.ANSWER,
        [("delta", {"text": "x", "t": 1.5})],
    ),
}


@pytest.mark.parametrize(("chunk", "kind", "expected"), EVENTS.values(), ids=EVENTS)
def test_the_text_format_tells_what_a_chunk_says(chunk: Any, kind: Kind, expected: list[tuple[str, Any]]) -> None:
    events = events_of(Entry(json.encode(chunk), 1.5, kind=kind))
    assert [(event.event, json.decode(event.data.encode())) for event in events] == expected
    assert [event.id for event in events] == [""] * (len(events) - 1) + ["1"] * bool(events)


def test_details_are_told_when_they_come_and_when_they_change() -> None:
    format_ = TextFormat(Reading(ids=True))
    entries = [Entry(json.encode({"choices": [], "citations": cited})) for cited in ("ab", "ab", "abc", "abc")]
    events = [decode(format_.encode(Batch(place, [entry]))) for place, entry in enumerate(entries, 1)]
    assert [[json.decode(event.data.encode())["citations"] for event in each] for each in events] == [
        ["ab"],
        [],
        ["abc"],
        [],
    ]


def test_a_response_that_has_told_details_shares_its_bytes_no_longer() -> None:
    plain, told = Entry(json.encode(choice({"content": "x"}))), Entry(json.encode({"choices": [], "citations": ["a"]}))
    format_ = TextFormat(Reading(ids=True))
    assert (format_.encode(Batch(1, [plain])), format_.sharing) == (format_.encode(Batch(1, [plain])), True)
    format_.encode(Batch(2, [told]))
    assert format_.sharing is None


@pytest.mark.parametrize("n", [1, 2])
def test_the_text_is_the_first_choices_of_several(n: int) -> None:
    format_ = TextFormat(Reading(about=About(id="", n=n)))
    entries = [Entry(json.encode({"choices": [{"index": each, "delta": {"content": "ab"[each]}}]})) for each in (0, 1)]
    texts = [json.decode(event.data.encode())["text"] for event in decode(format_.encode(Batch(1, entries)))]
    assert texts == (["a", "b"] if n == 1 else ["a"])


@pytest.mark.parametrize("data", [b"", b"not JSON", b'{"choices": [', b"\xff", b'{"a":' * 100_000], ids=range(5))
def test_what_is_no_chunk_says_nothing(data: bytes) -> None:
    assert entry_text(Entry(data)) == ""
    assert events_of(Entry(data)) == []


def events_of(entry: Entry) -> list[ServerSentEvent]:
    return decode(TextFormat(Reading(ids=True)).encode(Batch(1, [entry])))


_data = st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(), max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "index", "delta", "content", "refusal", "message"]), inner)
    ),
).map(json.encode)
_times = st.floats(0, 1e6)
_kinds = st.sampled_from([Kind.CHUNK, Kind.ANSWER])
_entries = st.builds(Entry, _data, _times, st.booleans(), _kinds) | st.builds(
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


class Twice(SSEFormat):
    """A format of two events for each entry, and two at the end."""

    def encode(self, batch: Batch) -> bytes:
        numbered = enumerate(batch.entries, batch.first)
        return b"".join(self._events(entry.data, batch.id(place)) for place, entry in numbered)

    def end(self, end: End) -> bytes:
        return self._events(end.outcome.encode(), "end")

    def _events(self, data: bytes, event_id: str) -> bytes:
        last = encode(ServerSentEvent(event="last", id=event_id if self.reading.ids else ""))
        return encode_data(data) + last


SPOKEN = {**FORMATS, "twice": Twice}


@settings(deadline=None)
@given(
    st.lists(_entries, max_size=5),
    _ends,
    st.integers(1, 10**6),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(sorted(SPOKEN)),
)
def test_whatever_is_in_the_log_becomes_events_of_which_an_entrys_last_has_its_id(
    entries: list[Entry], end: End, first: int, epoch: int, ids: bool, include_usage: bool, name: str
) -> None:
    spoken = SPOKEN[name](Reading(ids=ids, include_usage=include_usage))
    wire = b""
    for place, entry in enumerate(entries, first):
        batch = Batch(place, [entry], epoch=epoch)
        encoded = spoken.encode(batch)
        events = SSEDecoder().feed_raw(encoded)
        assert [event.id.decode() for event in events] == ids_of(events, batch.id(place) if ids else "")
        wire += encoded
    last = SSEDecoder().feed_raw(spoken.end(end))
    assert [event.id.decode() for event in last] == ids_of(last, "end" if ids else "")
    assert last
    # A batch is its entries: how the log cuts a stream into batches is not to be seen.
    assert spoken.encode(Batch(first, entries, end, epoch)) == wire


def ids_of(events: list[RawEvent], event_id: str) -> list[str]:
    """The ids that the events of one entry must have."""
    return ["" for _ in events[1:]] + [event_id for _ in events[:1]]


# Which format -------------------------------------------------------------------------------------------------------


def test_a_format_is_chosen_by_name_and_created_for_a_stream() -> None:
    formats = Formats()
    formats.by_name["twice"] = Twice
    wires = [formats.choose(name, Reading(ids=True, retry=5)) for name in ("openai", "text", "twice")]
    created: list[Format] = [wire.format(About(id="a"), after="7") for wire in wires]
    assert [type(each) for each in created] == [OpenAIFormat, TextFormat, Twice]
    assert not any(each.replays for each in created)
    assert isinstance(created[2], Twice)
    assert created[2].reading == Reading(about=About(id="a"), after="7", ids=True, retry=5)
    assert isinstance(wires[2].without_stream, Twice)
    assert wires[2].without_stream.reading == Reading(ids=True, retry=5)
    assert "twice" not in Formats().by_name


def test_the_head_tells_the_reconnection_time_to_a_client_that_can_resume() -> None:
    for name in FORMATS:
        assert FORMATS[name](Reading(retry=1500)).head() == b"retry: 1500\n"
        assert FORMATS[name](Reading()).head() == b""


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_formats_with_equal_sharing_write_the_same_bytes(name: str) -> None:
    answer = Entry(b'{"choices":[{"message":{"content":"x"}}],"usage":{}}', kind=Kind.ANSWER)
    batch = Batch(1, [*ENTRIES, answer])
    wires: dict[object, set[bytes]] = {}
    for ids, include_usage, retry in product([False, True], [False, True], [None, 5]):
        made = FORMATS[name](Reading(ids=ids, include_usage=include_usage, retry=retry, translate=str.upper))
        wires.setdefault(made.sharing, set()).add(made.encode(batch))
    assert None not in wires
    assert all(len(wire) == 1 for wire in wires.values())
    assert len(wires) == len(set.union(*wires.values()))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_refusal_is_openais_error_object_in_the_clients_language(name: str) -> None:
    error = ServerShutdown("It shuts down.")
    body, content_type = FORMATS[name](Reading(translate=str.upper)).refusal(error)
    assert content_type == "application/json"
    assert json.decode(body) == error.body(str.upper)
    assert b"THE SERVER WAS RESTARTED" in body


@pytest.mark.parametrize("name", ["", "OpenAI", "xml", "text\n"])
def test_an_unknown_format_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"format must be one of openai, text\.") as raised:
        Formats().choose(name, Reading())
    assert raised.value.param == "format"


def test_a_reader_is_told_the_ends_own_error() -> None:
    assert COMPLETED.exception() is None
    assert str(FAILED.exception()) == FAILED.error.message
    assert type(FAILED_WITHOUT_ERROR.exception()) is OpenAISSEError
    stopped = STOPPED.exception()
    assert stopped is not None
    assert (stopped.code, stopped.should_retry) == ("stopped", False)
