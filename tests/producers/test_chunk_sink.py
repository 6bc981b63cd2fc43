"""An upstream's bytes as entries."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse.errors import OpenAISSEError, UpstreamFailed, UpstreamGarbled, UpstreamTruncated
from quart_openai_sse.flow import Flow
from quart_openai_sse.logs.entries import Entry, Kind
from quart_openai_sse.producers.chunk_sink import ChunkSink
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.protocol.sse import encode_data
from quart_openai_sse.testing import chunk, finish

HELLO = chunk("Hello") + finish()
ERROR = b'{"error":{"message":"Overloaded","code":503}}'


class Taken:
    """A sink, and the entries that it gave."""

    def __init__(self, **headers: str) -> None:
        self.entries: list[Entry] = []
        self.completion = Completion()
        self.sink = ChunkSink(self.completion, take=self._take, room=self._room, max_event=1 << 20)
        self.sink.begin("upstream")
        self.sink.head(200, {name.replace("_", "-"): value for name, value in headers.items()})

    def feed(self, *pieces: bytes) -> Taken:
        """The same after these pieces and the end of the body. Raises what the sink does."""
        for piece in pieces:
            if self.sink.feed(piece) is Flow.ENOUGH:
                break
        self.sink.finish()
        return self

    @property
    def data(self) -> bytes:
        """The entries as a stream, without `[DONE]`."""
        return b"".join(encode_data(entry.data) for entry in self.entries)

    def _take(self, entries: list[Entry]) -> Flow:
        self.entries.extend(entries)
        return Flow.MORE

    async def _room(self) -> None: ...


def one_by_one(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


def test_a_chunk_whose_message_is_read_is_marked_and_the_next_one_is_not() -> None:
    def choice(**members: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "finish_reason": None, **members}]}

    taken = Taken()
    chunks = [choice(message={"content": "a"}), choice(delta={"content": "b"}), choice(delta={"content": "c"})]
    for each in chunks:
        taken.sink.feed(encode_data(json.encode(each)))
    assert [(entry.kind, json.decode(entry.data)) for entry in taken.entries] == [
        (Kind.MESSAGE, chunks[0]),
        (Kind.CHUNK, chunks[1]),
        (Kind.CHUNK, chunks[2]),
    ]


LABELS = [
    *("text/event-stream", "application/json", "application/json; charset=utf-8", "text/html", "text/plain"),
    *("application/octet-stream", "", "nonsense"),
]


@pytest.mark.parametrize("before", [b"", b"\n", b" \r\n", b"\xef\xbb\xbf", b": wait\n\n", b"retry: 3\n\n", b"once\n\n"])
def test_an_event_stream_is_one_whatever_its_label(before: bytes) -> None:
    for label, pieces in product(LABELS, ([before + HELLO], one_by_one(before + HELLO))):
        assert Taken(content_type=label).feed(*pieces).data + b"data: [DONE]\n\n" == HELLO


@pytest.mark.parametrize("encoding", ["identity", "none", "utf-8", ""])
def test_an_encoding_that_does_not_compress_is_no_harm(encoding: str) -> None:
    assert Taken(content_encoding=encoding).feed(HELLO).completion.done


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "BR", "zstd", "deflate, identity"])
def test_a_compressed_stream_is_named(encoding: str) -> None:
    with pytest.raises(UpstreamGarbled, match="compressed"):
        Taken(content_encoding=encoding).feed(b"\x1f\x8b")


@pytest.mark.parametrize(
    "body",
    [
        *(b'{"choices":[{"message":{"content":"Hello"}}]}', b'{\n\n "id": "x"\n}\n', b"[]", b"null", b'"[DONE]"'),
        *(b"<html>\n\n<p>data</p></html>", b"\r\n<!DOCTYPE html>", b"Bad gateway", b"upstream: gone\n\n"),
    ],
)
def test_a_document_is_no_stream_whatever_its_label(body: bytes) -> None:
    for label, pieces in product(LABELS, ([body], one_by_one(body))):
        with pytest.raises(UpstreamGarbled, match="document instead of a stream"):
            Taken(content_type=label).feed(*pieces)


@pytest.mark.parametrize("body", [b"", b"\n\n", b": wait\n\n", b"data:\n\n", b"data: \n\n<html>", b"id: 1\n\n<html>"])
def test_a_stream_that_says_nothing_is_cut(body: bytes) -> None:
    event, end, rest = body.partition(b"\n\n")
    for pieces in ([body], one_by_one(body), [event + end, rest]):
        with pytest.raises(UpstreamTruncated):
            Taken().feed(*pieces)


@pytest.mark.parametrize("before", [b"", b"\n", b": wait\n\n", chunk("", role="assistant"), chunk("Hi")], ids=repr)
@pytest.mark.parametrize("lead", [b"", b"data: ", b"error: ", b"event: error\ndata: "], ids=repr)
def test_an_error_is_one_wherever_it_stands_and_however_it_is_labelled(before: bytes, lead: bytes) -> None:
    for label, after in product(LABELS, [b"", b"\n", b"\n\n", b"\n\ndata: [DONE]\n\n"]):
        body = before + lead + ERROR + after
        for pieces in ([body], one_by_one(body)):
            taken = Taken(content_type=label)
            with pytest.raises(UpstreamFailed, match=r"^Overloaded$") as raised:
                taken.feed(*pieces)
            assert raised.value.status == 503
            assert taken.data == (before if b"Hi" in before else b"")


@pytest.mark.parametrize("blank", [b"data:\n\n", b"data: \n\n", b"data:  \t\n\n", b"data\n\n", b"data:\ndata:\r\n\r\n"])
def test_an_event_without_data_is_left_out(blank: bytes) -> None:
    events = [chunk("", role="assistant"), chunk("Hel"), chunk("lo"), finish()]
    body = blank + blank.join(events) + blank
    for pieces in ([body], one_by_one(body), [blank, *events, blank]):
        taken = Taken().feed(*pieces)
        assert taken.data + b"data: [DONE]\n\n" == b"".join(events)
        assert taken.completion.done


def test_the_usage_beside_an_error_is_kept() -> None:
    failed = {"error": {"message": "Lost"}, "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
    taken = Taken()
    with pytest.raises(UpstreamFailed, match="Lost"):
        taken.feed(chunk("Hi"), encode_data(json.encode(failed)))
    assert taken.completion.usage is not None
    assert taken.completion.usage["completion_tokens"] == 7


def outcome(pieces: list[bytes]) -> tuple[bytes, str]:
    """What comes of a body in these pieces."""
    taken, error = Taken(), ""
    try:
        taken.feed(*pieces)
    except OpenAISSEError as raised:
        error = f"{type(raised).__name__}: {raised}"
    return taken.data, error


bodies = st.lists(
    st.sampled_from(
        [
            *(chunk("Hi"), finish(), ERROR, b"error: Lost\n\n", b"event: error\n", b"data: {}\n\n", b"data: \n\n"),
            *(b"\n", b"\n\n", b"\r\n", b" ", b"\xef\xbb\xbf", b"<html>", b"{", b"}", b": c\n\n", b"data:", b"x: y"),
        ]
    ),
    max_size=6,
).map(b"".join)


@given(bodies, st.lists(st.integers(0, 200), max_size=6))
def test_the_cuts_of_a_body_change_nothing(body: bytes, places: list[int]) -> None:
    ends = sorted(min(place, len(body)) for place in places)
    pieces = [body[start:end] for start, end in zip([0, *ends], [*ends, len(body)], strict=True)]
    assert outcome(pieces) == outcome([body]) == outcome(one_by_one(body))
