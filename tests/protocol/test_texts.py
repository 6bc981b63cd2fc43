"""All text of a chunk, to read and to replace."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.texts import CONTENT, Place, places_of, text_of, with_text

REASONING, REFUSAL, TRANSCRIPT = Place(0, "reasoning"), Place(0, "refusal"), Place(0, "transcript")
FIRST, SECOND, OLD = Place(0, "arguments"), Place(0, "arguments", 1), Place(0, "arguments", -1)


def of(delta: Any, **members: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None, **members}], "usage": None}


def call(index: Any, arguments: Any, **members: Any) -> dict[str, Any]:
    return {"index": index, "function": {"arguments": arguments, **members}}


THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
REFERENCE = {"type": "reference", "reference_ids": [1]}
DETAILS = [{"type": "reasoning.text", "index": 0, "text": "h"}, {"type": "reasoning.text", "index": 1, "text": "m"}]

# chunk: its texts by place, and the delta with "X" at each place
CHUNKS: dict[str, tuple[dict[str, Any], dict[Place, str], Any]] = {
    "content": (of({"content": "a"}), {CONTENT: "a"}, {"content": "X"}),
    "role and content": (
        of({"role": "assistant", "content": "a"}),
        {CONTENT: "a"},
        {"role": "assistant", "content": "X"},
    ),
    "parts": (
        of({"content": [{"type": "text", "text": "a"}, REFERENCE, {"type": "text", "text": "b"}]}),
        {CONTENT: "ab"},
        {"content": [{"type": "text", "text": "X"}, REFERENCE]},
    ),
    "thinking and text in parts": (
        of({"content": [THINKING, {"type": "text", "text": "a"}]}),
        {REASONING: "hm", CONTENT: "a"},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "X"}]}, {"type": "text", "text": "X"}]},
    ),
    "reasoning": (of({"reasoning": "hm"}), {REASONING: "hm"}, {"reasoning": "X"}),
    "reasoning said twice": (
        of({"reasoning": "hm", "reasoning_details": DETAILS}),
        {REASONING: "hm"},
        {"reasoning": "X", "reasoning_details": [{**DETAILS[0], "text": "X"}, {**DETAILS[1], "text": ""}]},
    ),
    "a refusal": (of({"refusal": "no"}), {REFUSAL: "no"}, {"refusal": "X"}),
    "a refusal in parts": (
        of({"content": [{"type": "refusal", "refusal": "no"}]}),
        {REFUSAL: "no"},
        {"content": [{"type": "refusal", "refusal": "X"}]},
    ),
    "arguments of two calls": (
        of({"tool_calls": [call(0, "a", name="f"), call(1, "b")]}),
        {FIRST: "a", SECOND: "b"},
        {"tool_calls": [call(0, "X", name="f"), call(1, "X")]},
    ),
    "arguments that are an object": (
        of({"tool_calls": [call(0, {"a": 1}, name="f")]}),
        {FIRST: '{"a":1}'},
        {"tool_calls": [call(0, "X", name="f")]},
    ),
    "calls that are an object": (
        of({"tool_calls": call(0, "a", name="f")}),
        {FIRST: "a"},
        {"tool_calls": [call(0, "X", name="f")]},
    ),
    "a custom tool": (
        of({"tool_calls": [{"index": 0, "custom": {"name": "f", "input": "a"}}]}),
        {FIRST: "a"},
        {"tool_calls": [{"index": 0, "custom": {"name": "f", "input": "X"}}]},
    ),
    "an older function call": (
        of({"function_call": {"name": "f", "arguments": "a"}}),
        {OLD: "a"},
        {"function_call": {"name": "f", "arguments": "X"}},
    ),
    "a transcript": (
        of({"audio": {"id": "a", "transcript": "a"}}),
        {TRANSCRIPT: "a"},
        {"audio": {"id": "a", "transcript": "X"}},
    ),
    "nothing": (of({"role": "assistant"}), {}, {"role": "assistant"}),
}


@pytest.mark.parametrize(("chunk", "texts", "delta"), CHUNKS.values(), ids=CHUNKS)
def test_each_text_has_a_place_and_is_replaced_wherever_it_is_said(
    chunk: dict[str, Any], texts: dict[Place, str], delta: Any
) -> None:
    before = deepcopy(chunk)
    assert {place: text_of(chunk, place) for place in places_of(chunk)} == texts
    assert text_of(chunk) == "".join(texts.values())
    changed: Any = chunk
    for place in texts:
        assert with_text(changed, texts[place], place) is changed
        changed = with_text(changed, "X", place)
    assert changed == {**chunk, "choices": [{**chunk["choices"][0], "delta": delta}]}
    assert chunk == before


HIDDEN: dict[str, Any] = {
    "beside other reasoning": {"reasoning": "safe", "reasoning_details": [{"text": "secret"}]},
    "in a longer spelling": {"reasoning": "a", "reasoning_details": [{"text": "a secret"}]},
    "in two members of a block": {"reasoning_details": [{"text": "safe", "summary": "secret"}]},
    "in a block that is text": {"thinking_blocks": ["secret"]},
    "in blocks that are no list": {"reasoning_details": {"text": "secret"}},
    "in a list in a list": {"reasoning_details": [[{"text": "secret"}]]},
    "in a member of another name": {"reasoning_details": [{"type": "new", "value": "secret"}]},
    "in a part of a new kind": {"content": [{"type": "markdown", "text": "secret"}]},
    "in a flat call": {"tool_calls": [{"index": 0, "arguments": "secret"}]},
    "in a part that is a list": {"content": [["secret"]]},
    "in a part beside another refusal": {"refusal": "no", "content": [{"type": "refusal", "refusal": "secret"}]},
    "in odd members": {"function_call": "x", "audio": [1], "content": "secret"},
}


@pytest.mark.parametrize("delta", HIDDEN.values(), ids=HIDDEN)
def test_no_text_hides_from_a_redaction(delta: Any) -> None:
    chunk: Any = of(delta, logprobs={"content": [{"token": "secret"}]})
    assert "secret" in text_of(chunk)
    for place in [*places_of(chunk), OLD, TRANSCRIPT]:
        chunk = with_text(chunk, text_of(chunk, place).replace("secret", "X"), place)
    assert b"secret" not in json.encode(chunk)


def test_a_choice_that_comes_twice_is_replaced_twice() -> None:
    both = [{"index": 0, "delta": {"content": "a secret"}}, {"index": 0, "delta": {"content": " secret", "role": "x"}}]
    changed = with_text({"choices": both}, text_of({"choices": both}).replace("secret", "X"))
    assert text_of(changed) == "a X X"
    assert b"secret" not in json.encode(changed)


@pytest.mark.parametrize("place", [CONTENT, REASONING, REFUSAL, FIRST, SECOND, OLD, TRANSCRIPT, Place(2)])
def test_a_chunk_of_an_apps_own_is_made_of_its_text(place: Place) -> None:
    made = with_text({"choices": []}, "x", place)
    assert places_of(made) == [place]
    assert text_of(made, place) == "x"
    assert with_text({"choices": []}, "", place) == {"choices": []}


def test_the_log_probabilities_of_a_replaced_text_are_left_out() -> None:
    chunk = of({"content": "secret"}, logprobs={"content": [{"token": "secret"}]})
    assert b"secret" not in json.encode(with_text(chunk, "X"))
    assert "logprobs" not in with_text(of({"reasoning": "a"}, logprobs={}), "X", REASONING)["choices"][0]


_texts = st.text(max_size=4)
_deltas = st.fixed_dictionaries(
    {},
    optional={
        "content": _texts
        | st.lists(
            st.fixed_dictionaries({"type": st.just("text"), "text": _texts})
            | st.fixed_dictionaries({"type": st.just("thinking"), "thinking": _texts})
            | st.just(REFERENCE),
            max_size=3,
        ),
        "reasoning_content": _texts,
        "reasoning": _texts,
        "reasoning_details": st.lists(st.fixed_dictionaries({"text": _texts}), max_size=2),
        "refusal": _texts,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {"index": st.integers(0, 2), "function": st.fixed_dictionaries({"arguments": _texts})}
            ),
            max_size=3,
        ),
    },
)


@settings(max_examples=400)
@given(_deltas, _texts, st.data())
def test_a_replaced_text_is_read_back_and_the_others_stay(
    delta: dict[str, Any], text: str, data: st.DataObject
) -> None:
    chunk = of(delta)
    place = data.draw(st.sampled_from([CONTENT, REASONING, REFUSAL, FIRST, SECOND, *places_of(chunk)]))
    changed = with_text(chunk, text, place)
    assert text_of(changed, place) == text
    for other in {*places_of(chunk), *places_of(changed)} - {place}:
        assert text_of(changed, other) == text_of(chunk, other)
