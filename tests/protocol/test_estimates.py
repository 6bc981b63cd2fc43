"""Estimates of tokens: what counts, and what any body costs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse.protocol.estimates import answer_tokens, completion_tokens, prompt_tokens

PICTURE = "data:image/png;base64," + "iVBORw0KGgo" * 1000


def prompt(body: dict[str, Any]) -> int:
    return prompt_tokens(body, attachment=1000)


def user(content: Any, **members: Any) -> dict[str, Any]:
    return {"model": "gpt-5-mini", "messages": [{"role": "user", "content": content, **members}]}


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (user(""), 0),
        (user("x"), 1),
        (user("x" * 400), 100),
        (user("x" * 401), 101),
        (user("ж" * 400), 100),
        (user("x" * 396, name="anna"), 100),
        (user([{"type": "text", "text": "x" * 40}, {"type": "text", "text": "x" * 40}]), 20),
        (user([{"type": "text", "text": PICTURE}]), -(-len(PICTURE) // 4)),
        (user(PICTURE), -(-len(PICTURE) // 4)),
        (user([{"type": "image_url", "image_url": {"url": PICTURE, "detail": "high"}}]), 1000),
        (user([{"type": "image_url", "image_url": {"url": "https://pictures.example/1.png"}}]), 1000),
        (user([{"type": "image_url", "image_url": PICTURE}, {"type": "text", "text": "x" * 40}]), 1010),
        (user([{"type": "input_audio", "input_audio": {"data": "UklGRg" * 1000, "format": "wav"}}] * 3), 3000),
        (user([{"type": "file", "file": {"file_id": "file-1"}}]), 1000),
        (user([{"type": "file", "file": {"file_data": PICTURE, "filename": "a.pdf"}}]), 1000),
        (user([{"type": "image_url", "image_url": {"url": ""}, "text": "x" * 40}]), 1010),
        (
            user([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO" * 1000}}]),
            1000,
        ),
        (user([{"type": "document", "source": {"type": "text", "media_type": "", "data": "x" * 40}}]), 10),
        (user([{"type": "input_file", "filename": "a.pdf?", "file_data": PICTURE}]), 1002),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, 1000),
        ({"messages": [{"role": "assistant", "content": None, "refusal": "x" * 40}]}, 10),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "x" * 36}}
                        ],
                    },
                    {"role": "tool", "tool_call_id": "call_1", "content": "x" * 40},
                ]
            },
            20,
        ),
        # An object in place of the text of a call's arguments, which some servers accept.
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {"file": "x" * 400}}}]}]}, 103),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {"x" * 392: [1]}}}]}]}, 100),
        # Settings are none of the prompt.
        ({**user("x" * 40), "user": "ann", "temperature": 1, "reasoning_effort": "low", "seed": 7}, 10),
        ({**user("x" * 40), "metadata": {"a": "x" * 500}, "logit_bias": {"1": 5}, "stop": ["x" * 400]}, 10),
        ({**user(""), "prompt": "x" * 398}, 100),
    ],
)
def test_a_prompt_has_a_token_for_four_characters_and_a_number_for_each_attachment(
    body: dict[str, Any], tokens: int
) -> None:
    assert prompt(body) == tokens


@pytest.mark.parametrize(
    "member",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "description": "x" * 4000}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x" * 4000: {}}}}}]},
        {
            "tools": [
                {"type": "function", "function": {"parameters": {"properties": {"image": {"enum": ["x" * 4000]}}}}}
            ]
        },
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"description": "x" * 4000}}}},
        {"prediction": {"type": "content", "content": "x" * 4000}},
        {"documents": [["x" * 2000], ("x" * 2000,)]},
        {"functions": [{"name": "f", "description": "x" * 4000}]},
    ],
)
def test_tools_schemas_and_other_objects_are_text(member: dict[str, Any]) -> None:
    assert 1000 <= prompt({**user(""), **member}) < 1050


def test_very_many_values_are_not_free() -> None:
    many = ["four"] * 1_000_001
    assert prompt(user(many)) == 1_000_001
    for values in (many, [1.5] * len(many)):
        assert prompt({**user(""), "tools": [{"function": {"parameters": {"enum": values}}}]}) >= len(many)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from(["messages", "tools", "n", "max_tokens", "file"]) | st.text(), JSON))
def test_a_body_of_any_shape_has_an_estimate(body: dict[str, Any]) -> None:
    assert prompt(body) >= 0
    assert completion_tokens(body, default=1000) >= 1
    assert answer_tokens(body) >= 1


def test_a_body_that_contains_itself_has_one_too() -> None:
    messages: list[Any] = []
    tools: list[Any] = [messages]
    messages += [messages, messages, {"content": messages}]
    tools += [tools, tools, {1: tools}]
    assert prompt({"messages": messages, "tools": tools}) > 0


def test_data_is_not_decoded_nor_copied() -> None:
    class Data(str):
        def encode(self, *args: Any) -> bytes:
            raise AssertionError

        def __getitem__(self, key: Any) -> str:
            raise AssertionError

    part = {"type": "image_url", "image_url": {"url": Data(PICTURE)}}
    assert prompt(user([part, {"type": "text", "text": Data("x" * 40)}])) == 1010


@pytest.mark.parametrize(
    ("members", "tokens"),
    [
        ({}, 1000),
        ({"max_tokens": 90}, 90),
        ({"max_completion_tokens": 80}, 80),
        ({"max_tokens": 90, "max_completion_tokens": 80}, 90),
        ({"max_tokens": None, "max_completion_tokens": 80}, 80),
        ({"max_tokens": -1}, 1000),
        ({"max_tokens": 0}, 1000),
        ({"max_tokens": True}, 1000),
        ({"max_tokens": 10**12}, 10**12),
        ({"n": 3}, 3000),
        ({"n": 3, "max_tokens": 90}, 270),
        ({"n": None}, 1000),
    ],
)
def test_an_answer_may_have_the_tokens_it_is_limited_to_for_each_choice(members: dict[str, Any], tokens: int) -> None:
    assert completion_tokens(members, default=1000) == tokens


def test_an_answer_in_one_piece_has_a_token_for_four_characters() -> None:
    choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x" * 400}}]
    assert answer_tokens({"choices": choices}) == 100
