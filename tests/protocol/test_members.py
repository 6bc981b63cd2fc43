"""The members of a chat request: their types, and the ranges of OpenAI's API."""

from __future__ import annotations

import math
from json import dumps
from typing import Any

import pytest

from quart_openai_sse.errors import InvalidRequest
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.members import MEMBERS, RANGES, ROLES, check_ranges
from quart_openai_sse.protocol.requests import validate

MESSAGES = [{"role": "user", "content": "Hi"}]
BODY = {"model": "m", "messages": MESSAGES}

NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
INTEGERS = ("n", "max_tokens", "max_completion_tokens", "top_logprobs", "seed")
BOOLEANS = ("stream", "logprobs", "parallel_tool_calls")
OBJECTS = ("stream_options", "response_format", "logit_bias")
OTHERS = ("stop", "tools", "tool_choice", "user")
OPTIONAL = (*NUMBERS, *INTEGERS, *BOOLEANS, *OBJECTS, *OTHERS)

REFUSED: list[tuple[str, Any]] = [
    *((member, value) for member in NUMBERS for value in ("1", [], {}, True, False, math.nan, math.inf)),
    *((member, value) for member in INTEGERS for value in ("1", 1.5, 1.0, [], {}, True, False)),
    ("n", 0),
    ("n", 129),
    ("n", -1),
    ("n", 10**400),
    *((member, value) for member in BOOLEANS for value in (0, 1, "true", "", [], {})),
    *((member, value) for member in OBJECTS for value in (0, False, "", "json", [], [{}])),
    *(("stop", value) for value in (0, False, {}, [1], ["a", None])),
    *(("tools", value) for value in (0, False, "", {}, [None], [{}, "a"])),
    *(("tool_choice", value) for value in (0, False, [])),
    *(("user", value) for value in (0, False, [], {})),
]


@pytest.mark.parametrize(("member", "value"), REFUSED)
def test_a_member_of_the_wrong_type_is_named(member: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        validate({**BODY, member: value})
    error = raised.value
    assert (error.status, error.param, error.code) == (400, member, "invalid_request")
    assert error.message.startswith(f"{member} must be a")
    assert json.encode(error.body())


DESCRIPTIONS = {
    "stream": "a boolean",
    "stream_options": "an object",
    "temperature": "a number",
    "n": "an integer from 1 to 128",
    "max_tokens": "an integer",
    "seed": "an integer",
    "stop": "a string or a list of strings",
    "tools": "a list of objects",
    "tool_choice": "a string or an object",
    "user": "a string",
}


@pytest.mark.parametrize(("member", "description"), DESCRIPTIONS.items())
def test_an_error_describes_the_values_that_are_allowed(member: str, description: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        validate({**BODY, member: 1.5j})
    assert raised.value.message == f"{member} must be {description}."


RANGED: dict[str, tuple[str, tuple[Any, ...], tuple[Any, ...]]] = {
    "temperature": ("a number from 0 to 2", (0, 0.5, 2), (-0.1, 2.5, 10**400)),
    "top_p": ("a number from 0 to 1", (0, 1), (-0.01, 1.01)),
    "presence_penalty": ("a number from -2 to 2", (-2, 2), (-2.5, 2.5)),
    "frequency_penalty": ("a number from -2 to 2", (-2.0, 2), (-2.5, 2.5)),
    "max_tokens": ("an integer of at least 1", (1, 10**12), (0, -1)),
    "max_completion_tokens": ("an integer of at least 1", (1,), (0, -1)),
    "top_logprobs": ("an integer from 0 to 20", (0, 20), (-1, 21)),
}
"""By member: OpenAI's range in words, values in it, and values that only other servers take."""


@pytest.mark.parametrize("member", RANGED)
def test_ranges_are_openais_and_no_others(member: str) -> None:
    words, within, beyond = RANGED[member]
    for value in (*within, *beyond, None):
        body = validate({**BODY, member: value})
        assert body == {**BODY, member: value}
        if value in beyond:
            with pytest.raises(InvalidRequest) as raised:
                check_ranges(body)
            assert (raised.value.status, raised.value.param) == (400, member)
            assert raised.value.message == f"{member} must be {words}."
        else:
            check_ranges(body)


def test_every_range_has_its_member() -> None:
    assert RANGED.keys() == RANGES.keys() <= MEMBERS.keys()


@pytest.mark.parametrize("value", [0, "true", [], {}])
def test_include_usage_is_named_with_its_place(value: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        validate({**BODY, "stream_options": {"include_usage": value}})
    assert raised.value.param == "stream_options.include_usage"
    assert raised.value.message == "include_usage must be a boolean."


ACCEPTED: list[tuple[str, Any]] = [
    *((member, value) for member in NUMBERS for value in (0, 1, 0.5)),
    ("temperature", 2),
    ("presence_penalty", -2),
    ("frequency_penalty", -2.0),
    ("n", 1),
    ("n", 128),
    ("max_tokens", 1),
    ("max_tokens", 10**12),
    ("max_completion_tokens", 1),
    ("top_logprobs", 0),
    ("top_logprobs", 20),
    ("seed", -5),
    *((member, value) for member in BOOLEANS for value in (True, False)),
    *((member, value) for member in OBJECTS for value in ({}, {"a": 1})),
    ("stream_options", {"include_usage": True, "include_obfuscation": False}),
    ("stream_options", {"include_usage": None}),
    *(("stop", value) for value in ("", "a", [], ["a", "b"])),
    *(("tools", value) for value in ([], [{"type": "function"}])),
    *(("tool_choice", value) for value in ("auto", {"type": "function"})),
    ("user", "u"),
]


@pytest.mark.parametrize(("member", "value"), ACCEPTED)
def test_what_openai_takes_passes_untouched(member: str, value: Any) -> None:
    assert validate({**BODY, member: value}) == {**BODY, member: value}


@pytest.mark.parametrize("member", OPTIONAL)
def test_null_counts_as_left_out(member: str) -> None:
    assert validate({**BODY, member: None}) == {**BODY, member: None}


def test_unknown_members_pass_and_the_body_given_stays_as_it_is() -> None:
    body = {
        **BODY,
        "reasoning_effort": "low",
        "made_up": [{"a": None}],
        "messages": [{"role": "user", "content": [{"type": "image_url"}], "cache_control": {"a": 1}}],
    }
    before = dumps(body)
    checked = validate(body, default_model="other")
    assert checked == body
    assert checked is not body
    assert dumps(body) == before


@pytest.mark.parametrize("missing", [{}, {"model": None}], ids=["left out", "null"])
def test_a_request_without_a_model_gets_the_default(missing: dict[str, Any]) -> None:
    body = {"messages": MESSAGES, **missing}
    assert validate(body, default_model="d")["model"] == "d"
    assert "model" not in missing or missing["model"] is None
    with pytest.raises(InvalidRequest) as raised:
        validate(body)
    assert raised.value.param == "model"


@pytest.mark.parametrize("model", ["", " \n", 5, True, [], {}])
def test_a_model_that_is_none_is_refused_even_with_a_default(model: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        validate({**BODY, "model": model}, default_model="d")
    assert raised.value.param == "model"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ({}, "messages"),
        ("Hi", "messages"),
        (5, "messages"),
        ([None], "messages[0]"),
        ([*MESSAGES, "Hi"], "messages[1]"),
        ([{}], "messages[0].role"),
        ([{"role": None}], "messages[0].role"),
        ([*MESSAGES, {"role": ""}], "messages[1].role"),
        ([{"role": " "}], "messages[0].role"),
        ([{"role": "a\nb"}], "messages[0].role"),
        ([{"role": "x" * 65}], "messages[0].role"),
        ([{"role": ["user"]}], "messages[0].role"),
        ([{"role": {}}], "messages[0].role"),
    ],
)
def test_a_wrong_message_is_named_with_its_place(messages: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        validate({**BODY, "messages": messages})
    assert raised.value.param == param


def test_messages_left_out_are_missed() -> None:
    with pytest.raises(InvalidRequest) as raised:
        validate({"model": "m"})
    assert raised.value.param == "messages"


@pytest.mark.parametrize("role", sorted(ROLES))
def test_every_role_of_openai_is_known(role: str) -> None:
    check_ranges(validate({**BODY, "messages": [{"role": role}]}))


@pytest.mark.parametrize("role", ["ipython", "用户", "x" * 64])
def test_other_servers_may_have_roles_of_their_own(role: str) -> None:
    body = validate({**BODY, "messages": [*MESSAGES, {"role": role}]})
    with pytest.raises(InvalidRequest) as raised:
        check_ranges(body)
    assert raised.value.param == "messages[1].role"
    assert raised.value.message.startswith("A message's role must be one of assistant, developer, ")
