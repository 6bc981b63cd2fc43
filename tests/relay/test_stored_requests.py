"""What is stored of a request: it comes back as it was, and what does not fit is named."""

from __future__ import annotations

import datetime
import math
import random
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse.errors import InvalidRequest
from quart_openai_sse.observers import StreamRecord
from quart_openai_sse.principal import Principal
from quart_openai_sse.relay.stored_requests import (
    MOST,
    StoredRequest,
    check_metadata,
    decode_request,
    encode_request,
)
from tests.conftest import QUESTION

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}
ME = Principal("ann", "session", cookie=True, models=frozenset({"b", "a"}), max_streams=3)

TEXT = st.text(st.characters(codec=None), max_size=8)  # halves of a character, too: JSON can hold them
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXT, values, max_size=3),
    max_leaves=8,
)


def stored(body: dict[str, Any] = BODY, metadata: Any = None, principal: Principal = ME) -> StoredRequest:
    """A request as another process gets it."""
    record = StreamRecord(
        id="1f",
        thread="t",
        model="other",
        upstream="app",
        trace_id="ab",
        principal=str(principal),
        metadata=metadata or {},
    )
    check_metadata(record.metadata)
    data = encode_request(principal=principal, body=body, record=record)
    assert len(data) <= MOST
    return decode_request(data, stream_id="1f")


def test_a_request_comes_back_as_it_was() -> None:
    request = stored(metadata={"cid": 7})
    assert (request.principal, request.body) == (ME, BODY)
    assert request.record == StreamRecord(
        id="1f",
        thread="t",
        model="other",
        upstream="app",
        trace_id="ab",
        principal="session:ann",
        metadata={"cid": 7},
    )
    anybody = Principal("", "anonymous", anonymous=True)
    assert stored(principal=anybody).principal == anybody


@given(metadata=st.dictionaries(TEXT, VALUES, max_size=3), id_=TEXT)
def test_whatever_json_holds_comes_back(metadata: dict[str, Any], id_: str) -> None:
    request = stored({"model": "m", "messages": [{"role": "user", "content": id_}]}, metadata, Principal(id_))
    assert (request.record.metadata, request.principal) == (metadata, Principal(id_))
    assert request.body["messages"][0]["content"] == id_


@pytest.mark.parametrize(
    ("metadata", "place"),
    [
        ({"at": datetime.datetime(2026, 1, 1)}, r"metadata\['at'\] is of the type datetime"),
        ({"a": [{"b": (1, 2)}]}, r"metadata\['a'\]\[0\]\['b'\] is of the type tuple"),
        ({"a": {1: 2}}, r"metadata\['a'\] has the key 1"),
        ({"a": b"bytes"}, r"metadata\['a'\] is of the type bytes"),
        ({"a": -(10**5000)}, r"metadata\['a'\] is an integer of more than 8192 bits"),
    ],
)
def test_metadata_that_is_not_json_is_refused_by_its_place(metadata: dict[str, Any], place: str) -> None:
    with pytest.raises(TypeError, match=place):
        check_metadata(metadata)


def test_metadata_that_a_caller_can_make_is_never_a_fault_of_the_app() -> None:
    metadata = {"a": 10**40, "b": "half \ud83d", "c": math.inf}  # as `request.get_json()` reads them
    assert stored(metadata=metadata).record.metadata == metadata
    assert math.isnan(stored(metadata={"a": math.nan}).record.metadata["a"])
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested"):
        check_metadata({"deep": deep})


def test_of_a_request_that_is_too_large_the_rest_is_stored_and_a_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    picture = random.Random(1).randbytes(MOST).hex()
    request = stored({**BODY, "user": "ann", "messages": [{"role": "user", "content": picture}]}, {"cid": 7})
    assert request.body == {"model": "scripted", "stream": True, "user": "ann"}
    assert request.record.metadata == {"cid": 7}
    assert "stream 1f: 'messages' could not be stored" in caplog.text


def test_a_text_that_can_be_compressed_is_stored_whole() -> None:
    body = {**BODY, "messages": [{"role": "user", "content": "long " * MOST}]}
    assert stored(body).body == body


def test_metadata_is_left_out_last(caplog: pytest.LogCaptureFixture) -> None:
    request = stored(metadata={"a": random.Random(1).randbytes(MOST).hex()})
    assert (request.body, request.record.metadata, request.principal) == ({}, {}, ME)
    assert "'messages', 'model', 'stream', 'metadata' could not be stored" in caplog.text


def test_without_room_even_for_the_principal_nothing_is_stored() -> None:
    record = StreamRecord(id="1f")
    principal = Principal(random.Random(1).randbytes(MOST).hex())
    assert encode_request(principal=principal, body=BODY, record=record) == b""


def test_an_object_that_a_hook_has_added_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert stored({**BODY, "documents": [object()], 7: "seven"}).body == BODY
    assert "'documents', 7 could not be stored" in caplog.text


@pytest.mark.parametrize("data", [b"", b"text", zlib.compress(b"{}\n{}\n{}"), zlib.compress(b"{}")])
def test_anything_else_is_no_request(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a stored request|not enough values"):
        decode_request(data, stream_id="1f")
