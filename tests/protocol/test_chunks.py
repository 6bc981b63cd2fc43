"""What a choice of a chunk says, in each dialect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import (
    DETAILS,
    as_delta,
    delta_of,
    details_of,
    finish_of,
    first_choice,
    has_words,
    merged,
    reasoning_of_delta,
    refusal_of_delta,
    text_of_delta,
)
from quart_openai_sse.protocol.tool_calls import calls_of

THOUGHT = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

# delta: its text, its reasoning, its refusal
SAYINGS: dict[str, tuple[Any, tuple[str, str, str]]] = {
    "text": ({"content": "x"}, ("x", "", "")),
    "parts of text": ({"content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}, ("xy", "", "")),
    "parts that are strings": ({"content": ["x", "y"]}, ("xy", "", "")),
    "one part instead of a list": ({"content": {"type": "text", "text": "x"}}, ("x", "", "")),
    "a part without a type": ({"content": [{"text": "x"}]}, ("x", "", "")),
    "text with annotations": ({"content": [{"type": "text", "text": {"value": "x"}}]}, ("x", "", "")),
    "output text": ({"content": [{"type": "output_text", "text": "x"}]}, ("x", "", "")),
    "thinking as parts": ({"content": [{"type": "thinking", "thinking": THOUGHT}]}, ("", "ab", "")),
    "thinking as text": ({"content": [{"type": "thinking", "thinking": "ab"}]}, ("", "ab", "")),
    "a part of reasoning": ({"content": [{"type": "reasoning", "text": "a"}]}, ("", "a", "")),
    "both": ({"content": [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "x"}]}, ("x", "a", "")),
    "a reference": ({"content": [{"type": "reference", "reference_ids": [1]}]}, ("", "", "")),
    "a refusal": ({"refusal": "no"}, ("", "", "no")),
    "a refusal in parts": ({"content": [{"type": "refusal", "refusal": "no"}]}, ("", "", "no")),
    "reasoning said twice": ({"reasoning": "a", "reasoning_details": [{"text": "a"}]}, ("", "a", "")),
    "details of reasoning alone": ({"reasoning_details": [{"summary": "a"}, {"data": "=="}]}, ("", "a", "")),
    "thinking blocks": ({"thinking_blocks": [{"type": "thinking", "thinking": "a", "signature": "s"}]}, ("", "a", "")),
    "reasoning as an object": ({"reasoning": {"content": "a"}}, ("", "a", "")),
    "thinking that is a switch": ({"thinking": True, "content": "x"}, ("x", "", "")),
    "a part of a new kind with text": ({"content": [{"type": "markdown", "text": "x"}]}, ("x", "", "")),
    "nothing": ({}, ("", "", "")),
    "odd types": ({"content": 5, "refusal": [None, 3], "reasoning": [[], {}]}, ("", "", "")),
}


@pytest.mark.parametrize(("delta", "said"), SAYINGS.values(), ids=SAYINGS)
def test_a_delta_says_its_text_its_reasoning_and_its_refusal(delta: Any, said: tuple[str, str, str]) -> None:
    assert (text_of_delta(delta), reasoning_of_delta(delta), refusal_of_delta(delta)) == said


@pytest.mark.parametrize(
    "member", ["reasoning_content", "reasoning", "reasoning_text", "thinking", "thinking_content", "thought"]
)
def test_reasoning_has_many_names(member: str) -> None:
    assert reasoning_of_delta({"content": "", member: "a"}) == "a"


MESSAGE = {"role": "assistant", "content": "whole"}

# choice: what it says in a stream, and where no delta has come
CHOICES: dict[str, tuple[Any, Any, Any]] = {
    "a delta": ({"delta": {"content": "x"}}, {"content": "x"}, {"content": "x"}),
    "a message": ({"message": MESSAGE}, {}, MESSAGE),
    "both": ({"delta": {"content": "x"}, "message": MESSAGE}, {"content": "x"}, {"content": "x"}),
    "an empty delta": ({"delta": {"content": ""}, "message": MESSAGE}, {"content": ""}, MESSAGE),
    "an empty message": ({"delta": {"role": "assistant"}, "message": {}}, {"role": "assistant"}, {"role": "assistant"}),
    "text": ({"text": "x"}, {}, {"content": "x"}),
    "text beside a delta": ({"text": "x", "delta": {"content": "y"}}, {"content": "y"}, {"content": "y"}),
    "neither": ({"finish_reason": "content_filter"}, {}, {}),
    "odd types": ({"delta": [1], "message": "x", "text": 5}, {}, {}),
}


@pytest.mark.parametrize(("choice", "in_a_stream", "whole"), CHOICES.values(), ids=CHOICES)
def test_a_message_counts_where_no_delta_came(choice: Any, in_a_stream: Any, whole: Any) -> None:
    assert delta_of(choice) == in_a_stream
    assert delta_of(choice, whole=True) == whole


def test_a_choice_with_a_message_becomes_one_with_a_numbered_delta() -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}
    choice = {"index": 0, "message": {"content": None, "tool_calls": [call, {**call, "id": "b"}]}, "text": None}
    made = as_delta(choice, whole=True)
    assert made.keys() == {"index", "delta"}
    assert [(each["index"], each["id"], each["function"]["arguments"]) for each in made["delta"]["tool_calls"]] == [
        (0, "a", '{"x":1}'),
        (1, "b", '{"x":1}'),
    ]


CALLS: dict[str, tuple[Any, list[Any]]] = {
    "a list": ([{"function": {"name": "f"}}], [{"function": {"name": "f"}}]),
    "an object": ({"function": {"name": "f"}}, [{"function": {"name": "f"}}]),
    "arguments as an object": (
        [{"function": {"name": "f", "arguments": {"a": [1]}}}],
        [{"function": {"name": "f", "arguments": '{"a":[1]}'}}],
    ),
    "no function around it": (
        [{"id": "a", "name": "f", "arguments": {}}],
        [{"id": "a", "function": {"name": "f", "arguments": "{}"}}],
    ),
    "arguments null": (
        [{"function": {"name": "f", "arguments": None}}],
        [{"function": {"name": "f", "arguments": None}}],
    ),
    "a piece without a function around it": (
        [{"index": 0, "arguments": "{}"}],
        [{"index": 0, "function": {"arguments": "{}"}}],
    ),
    "odd ones": ([None, 5, "f", []], []),
    "text": ("f", []),
    "null": (None, []),
}


@pytest.mark.parametrize(("calls", "expected"), CALLS.values(), ids=CALLS)
def test_tool_calls_are_taken_as_what_they_mean(calls: Any, expected: list[Any]) -> None:
    assert calls_of(calls) == expected


def test_details_are_in_a_chunk_in_a_choice_and_in_a_delta() -> None:
    image, reference = {"type": "image_url"}, {"type": "reference", "reference_ids": [1]}
    delta = {"content": [reference, image, {"type": "new"}], "annotations": [1], "citations": []}
    choice = {"delta": delta, "content_filter_results": {"hate": {}}}
    chunk = {"choices": [choice], "citations": ["a"], "search_results": None, "system_fingerprint": "x"}
    assert details_of(chunk, choice, delta) == {
        "citations": ["a"],
        "content_filter_results": {"hate": {}},
        "annotations": [1],
        "references": [reference],
        "images": [image],
        "parts": [{"type": "new"}],
    }


@pytest.mark.parametrize(
    ("reason", "found"), [("stop", "stop"), ("", ""), (None, ""), ("null", ""), ("NULL", ""), (5, ""), ([], "")]
)
def test_null_as_text_is_no_reason(reason: Any, found: str) -> None:
    assert finish_of(reason) == found


def test_details_alone_do_not_continue_an_answer() -> None:
    assert not any(has_words({member: "x"}) for member in (*DETAILS, "role"))
    assert all(has_words({member: "x"}) for member in ("content", "reasoning", "tool_calls", "refusal", "audio"))


def test_a_request_for_one_choice_has_one() -> None:
    chunk = {"choices": [None, {"index": 3}, {"index": 0}]}
    assert first_choice(chunk) == {"index": 3}
    assert first_choice(chunk, n=2) == {"index": 0}
    assert first_choice({"choices": None}) is None


def test_two_choices_of_one_answer_are_one() -> None:
    call = {"id": "a", "function": {"name": "f"}}
    text = {"delta": {"role": "assistant", "content": "Look"}, "finish_reason": None}
    calls = {
        "delta": {"role": "assistant", "content": ".", "tool_calls": [call]},
        "finish_reason": "tool_calls",
        "x": 1,
    }
    assert first_choice({"choices": [text, calls]}) == {
        "delta": {"role": "assistant", "content": "Look.", "tool_calls": [call]},
        "finish_reason": "tool_calls",
        "x": 1,
    }


def test_details_are_added_up_in_a_list_of_any_length_without_a_pause() -> None:
    first, second = ([{"url": f"https://{n}.example"} for n in range(start, start + 20_000)] for start in (0, 10_000))
    assert merged(first, second) == [*first, *second[10_000:]]
    assert merged(first, list(first)) is first
    assert merged([1], {"a": 1}) == {"a": 1}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["content", "delta", "message", "text", "type", "thinking", "reasoning", "tool_calls", "function"]
            )
            | st.sampled_from(["arguments", "reasoning_details", "refusal", "images", "citations", "name", "index"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["delta", "message", "text", "index", "finish_reason"]), _json))
def test_nothing_in_a_choice_raises(choice: dict[str, Any]) -> None:
    for whole in (False, True):
        delta = delta_of(choice, whole=whole)
        said = (text_of_delta(delta), reasoning_of_delta(delta), refusal_of_delta(delta))
        assert all(isinstance(each, str) for each in said)
        assert json.encode([details_of({}, choice, delta), calls_of(delta.get("tool_calls"))])
        assert json.encode(as_delta(choice, whole=whole))
