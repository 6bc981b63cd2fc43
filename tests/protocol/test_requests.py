"""The checks of a chat request, and the keys of streams."""

from __future__ import annotations

from json import dumps
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quart_openai_sse.errors import InvalidRequest, OpenAISSEError, UnsupportedMediaType
from quart_openai_sse.principal import Principal, owner_key, stream_key
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.requests import check_idempotency_key, check_thread, digest, parse_body, validate
from tests.protocol.test_members import BODY, MESSAGES, OPTIONAL


def parse(data: bytes) -> dict[str, Any]:
    return parse_body(data, content_type="application/json")


# The body -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8", " application/json ;x"],
)
def test_json_is_taken(content_type: str) -> None:
    assert parse_body(b'{"a": 1}', content_type=content_type) == {"a": 1}


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "text/plain; application/json", "application/json-seq"],
)
def test_what_a_page_of_another_origin_may_post_is_refused(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType) as raised:
        parse_body(b"{}", content_type=content_type)
    assert raised.value.status == 415


@pytest.mark.parametrize("upgrade", ["", "h2c"])
def test_a_missing_body_is_called_missing_and_an_upgrade_is_named_as_what_loses_it(upgrade: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_body(b"", content_type="application/json", upgrade=upgrade)
    assert (raised.value.status, raised.value.code) == (400, "invalid_json")
    assert raised.value.message.startswith("The request has no body.")
    assert ("--http h11" in raised.value.message) == bool(upgrade)


NOT_JSON = {
    "text": b"hello",
    "cut": b'{"a": ',
    "single quotes": b"{'a': 1}",
    "a trailing comma": b'{"a": 1,}',
    "two values": b"{} {}",
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": -Infinity}',
    "NaN beside a lone surrogate": b'{"a": "\\ud800", "temperature": NaN}',
    "a number out of range": b'{"temperature": 1e999}',
    "a number out of range beside an escape": b'{"a": "\\u0041", "temperature": 1e999}',
    "a number out of range, negative": b'{"a": "\\u0041", "temperature": -1e999}',
    "an integer of 5000 digits": b'{"seed": ' + b"1" * 5000 + b"}",
    "an integer of 5000 digits beside an escape": b'{"a": "\\u0041", "seed": ' + b"1" * 5000 + b"}",
    "invalid UTF-8": b'{"a": "\xff"}',
    "invalid UTF-8 beside an escape": b'{"a": "\\u0041\xff"}',
    "an encoded surrogate": b'{"a": "\xed\xa0\x80"}',
    "an encoded surrogate beside an escaped one": b'{"a": "\\ud800\xed\xa0\x80"}',
    "UTF-16": '{"a": "b"}'.encode("utf-16"),
    "UTF-16 that looks escaped": '{"a": "\u755c"}'.encode("utf-16-le"),
    "a BOM": b"\xef\xbb\xbf{}",
    "a BOM and a lone surrogate": b'\xef\xbb\xbf{"a": "\\ud800"}',
    "a control character": b'{"a": "\x00"}',
    "too deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "too deep beside a lone surrogate": b'{"a": "\\ud800", "b": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("data", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(data)
    assert (raised.value.status, raised.value.code) == (400, "invalid_json")
    assert raised.value.message.startswith("The body is not JSON: ")


@pytest.mark.parametrize("data", [b"[]", b'"a"', b"5", b"null", b"true"])
def test_json_that_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        parse(data)


def test_of_a_member_that_comes_twice_the_last_counts() -> None:
    assert parse(b'{"model": "a", "model": "b"}') == {"model": "b"}


def test_half_an_emoji_passes_and_comes_out_as_it_went_in() -> None:
    # Browsers send it where a text was cut in the middle of one.
    data = b'{"a":"\\ud83d","b":"\\ud83d\\ude00","c":1.5}'
    body = parse(data)
    assert body == {"a": "\ud83d", "b": "\U0001f600", "c": 1.5}
    assert parse(json.encode(body)) == body


def test_large_integers_pass_as_they_are() -> None:
    body = {**BODY, "seed": 10**300}
    assert validate(parse(json.encode(body))) == body


def test_no_json_is_written_that_is_none() -> None:
    assert json.encode({"a": [1, "x", None, True]}) == b'{"a":[1,"x",null,true]}'
    with pytest.raises(ValueError, match="JSON compliant"):
        json.encode({"a": "\ud83d", "b": float("nan")})
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, ["\ud83d", deep]):
        with pytest.raises(ValueError, match="nested too deeply"):
            json.encode(value)
    with pytest.raises(TypeError):
        json.encode(object())


# Whatever comes -----------------------------------------------------------------------------------------------------

_names = st.sampled_from(["model", "messages", "role", "content", "include_usage", "x", *OPTIONAL])
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=4)
    | st.sampled_from(["user", 10**30, 0, 1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=5),
    max_leaves=15,
)
_bodies = st.dictionaries(_names, _values).map(lambda body: {"messages": MESSAGES, "model": "m", **body}) | _values


def _check(data: bytes) -> None:
    result = _validated(data)
    if isinstance(result, OpenAISSEError):
        assert 400 <= result.status < 500
        assert json.encode(result.body())
    else:
        assert len(digest(result)) == 64
        assert json.decode(json.encode(result)) == result


def _validated(data: bytes) -> dict[str, Any] | OpenAISSEError:
    try:
        return validate(parse(data))
    except OpenAISSEError as error:
        return error


@settings(deadline=None)
@given(st.binary() | st.text(st.sampled_from('{}[]":,\\u0d8e1. \n')).map(str.encode))
def test_no_bytes_raise_anything_but_an_error_of_ours(data: bytes) -> None:
    _check(data)


@settings(deadline=None, max_examples=300)
@given(_bodies)
def test_no_json_raises_anything_but_an_error_of_ours(body: Any) -> None:
    _check(json.encode(body))


@pytest.mark.parametrize("depth", [50, 500, 900, 960, 5000, 9000])
@pytest.mark.parametrize("start", ['"x"', '"\\ud800"'], ids=["plain", "beside a lone surrogate"])
def test_no_depth_raises_anything_but_an_error_of_ours(depth: int, start: str) -> None:
    deep = "[" * depth + "]" * depth
    try:
        digest(validate(parse(f'{{"model": "m", "messages": {dumps(MESSAGES)}, "x": [{start}, {deep}]}}'.encode())))
    except InvalidRequest as error:
        assert error.code == "invalid_json"  # noqa: PT017 (how deep Python goes is its own affair)


# Keys ---------------------------------------------------------------------------------------------------------------


def test_a_digest_is_the_same_for_every_order_and_for_nothing_else() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    others = [
        {"a": 1},
        {"a": 2},
        {"a": "1"},
        {"a": True},
        {"a": {"b": None}},
        {"stream": True},
        {},
        {"a": [1, 2]},
        {"a": [2, 1]},
        {"a": "\ud800"},
    ]
    assert len({digest(body) for body in others}) == len(others)


def test_a_digest_is_the_same_for_what_means_the_same() -> None:
    plain = digest({"a": 1})
    assert {digest({"a": 1, **more}) for more in ({"b": None}, {"stream": False}, {"stream": None})} == {plain}


def test_a_body_too_deep_for_a_digest_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(InvalidRequest, match="too deeply"):
        digest(deep)


@pytest.mark.parametrize("key", ["a", "!", "~", "8e03978e-40d5-43e8-bc93-6894a57f9324", "k" * 255])
def test_an_idempotency_key_is_visible_ascii(key: str) -> None:
    assert check_idempotency_key(key) == key


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "ü", "\x7f", "\0", "k" * 256])
def test_any_other_idempotency_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_idempotency_key(key)
    assert raised.value.param == "Idempotency-Key"


@pytest.mark.parametrize("thread", ["a", "chat:5", "Grüße an alle", "東京　出張", "می‌خواهم", "👩‍🚀", "\xa0", "t" * 255])
def test_a_thread_is_text(thread: str) -> None:
    assert check_thread(thread) == thread


def test_no_thread_is_no_thread() -> None:
    assert check_thread(None) == ""


@pytest.mark.parametrize(
    "thread",
    [
        *("", "a\n", "\r", "\0", "\x7f", "\x85", "a\u2028b", "\u2029", "t" * 256, 5, True, [], {}, b"a"),
        *("a\u061c", "a\u200e", "\u200f", "\u202a", "\u202eb", "\u2066", "\u2069", "\ud83d"),
    ],
    ids=ascii,
)
def test_any_other_thread_is_refused(thread: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_thread(thread)
    assert raised.value.param == "thread"


def test_nobody_can_have_the_key_of_anothers_stream() -> None:
    parts = ["", "a", "aa", "a:a", "1:a", "a1:", "\ud800", "ü"]
    keys = {
        stream_key(owner_key(instance, Principal(id, realm)), stream)
        for instance in parts
        for realm in parts
        for id in parts  # noqa: A001 (the principal's word)
        for stream in parts
    }
    assert len(keys) == len(parts) ** 4


def test_a_principal_says_its_realm_and_id() -> None:
    assert str(Principal("42", "session")) == "session:42"
    assert Principal("42", "session") != Principal("42", "token")
