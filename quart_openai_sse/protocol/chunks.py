"""One reading of a chunk, for all that needs to know what a chunk says, whatever dialect its upstream speaks.

docs/reference/dialects.md lists the dialects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quart_openai_sse.protocol import json

Chunk = Mapping[str, Any]
"""A `chat.completion.chunk` as OpenAI documents it, unknown members included."""

REASONING = ("reasoning_content", "reasoning", "reasoning_text", "thinking", "thinking_content", "thought")
"""The members of a delta that hold reasoning as text. A delta that has several of them says the same in each."""

REASONING_BLOCKS = ("reasoning_details", "thinking_blocks")
"""The members of a delta that hold reasoning as a list of objects, with signatures or encrypted parts."""

DETAILS = frozenset(
    {
        "annotations",
        "citations",
        "content_filter_results",
        "context",
        "executed_tools",
        "grounding_metadata",
        "images",
        "parts",
        "prompt_annotations",
        "prompt_filter_results",
        "references",
        "related_questions",
        "search_info",
        "search_results",
        "sources",
        "videos",
        "web_search",
    }
)
"""What is known of an answer besides its words. Upstreams send it in a chunk, in a choice or in a delta."""

FAILED = frozenset({"abort", "aborted", "error", "insufficient_system_resource", "network_error"})
"""Values of `finish_reason` that say that the answer was interrupted (OpenRouter, vLLM, SGLang, DeepSeek, Zhipu)."""

_KINDS = {
    "text": "text",
    "output_text": "text",
    "thinking": "thinking",
    "reasoning": "thinking",
    "reasoning_text": "thinking",
    "summary_text": "thinking",
    "refusal": "refusal",
    "reference": "references",
}


def find_index(value: Mapping[str, Any]) -> int | None:
    """The `index` of a choice or of a tool call; `None` if it is missing or not an integer."""
    index = value.get("index")
    return index if type(index) is int else None  # True is an int to Python, and not to JSON


def has_output(delta: Mapping[str, Any]) -> bool:
    """Whether *delta* holds output: a member other than `role` that is not empty."""
    # A loop, because any() makes Completion.feed 52 % slower for a tool call (Python 3.13: 29 %).
    for member, value in delta.items():  # noqa: SIM110
        if value and member != "role":
            return True
    return False


def has_words(delta: Mapping[str, Any]) -> bool:
    """Whether *delta* continues an answer: by text, reasoning, a refusal, a tool call or sound, not only by details."""
    return any(value and member != "role" and member not in DETAILS for member, value in delta.items())


def finish_of(reason: object) -> str:
    """A choice's `finish_reason`, or "" if it has none. Some servers write "null" in chunks that do not finish."""
    return reason if isinstance(reason, str) and reason != "null" else ""


def first_choice(chunk: Mapping[str, Any], *, n: int = 1) -> Mapping[str, Any] | None:
    """The choice of *chunk* that belongs to the first of *n* choices.

    A request for one choice has one, whatever index its chunks give it: some servers count chunks by it.
    """
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if (type(choice) is dict or isinstance(choice, Mapping)) and (n == 1 or (find_index(choice) or 0) == 0):
            return choice
    return None


def delta_of(choice: Mapping[str, Any], *, whole: bool = False) -> Mapping[str, Any]:
    """What a choice says. In a stream that is its `delta`: a `message` beside it repeats what the deltas said.

    With *whole*, in an answer that was not streamed and in a chunk before which no delta came, it is the `message`, or
    the `text` of the older Completions API, if there is nothing in the delta.
    """
    delta = choice.get("delta")
    # Asking for dict first makes the whole of this faster by a third: Mapping is an abstract class.
    if (type(delta) is dict or isinstance(delta, Mapping)) and (not whole or has_output(delta)):
        return delta
    delta = delta if isinstance(delta, Mapping) else {}
    if not whole:
        return delta
    message, text = choice.get("message"), choice.get("text")
    if isinstance(message, Mapping) and (has_output(message) or not delta):
        return message
    return {**delta, "content": text} if isinstance(text, str) and text else delta


def as_deltas(choices: object, *, whole: bool) -> list[dict[str, Any]]:
    """The choices of a chunk, each with what it says as a `delta`; see `delta_of` for *whole*."""
    listed = [each for each in choices if isinstance(each, Mapping)] if isinstance(choices, list) else []
    return [as_delta(choice, whole=whole) for choice in listed]


def as_delta(choice: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    """A choice with what it says as a `delta`, also if that was a `message`, whose tool calls are not numbered."""
    delta = delta_of(choice, whole=whole)
    if whole and (calls := delta.get("tool_calls")):
        delta = {**delta, "tool_calls": [{**call, "index": n} for n, call in enumerate(calls_of(calls))]}
    others = {name: value for name, value in choice.items() if name not in ("message", "text")}
    return {**others, "delta": delta}


def text_of_delta(delta: Mapping[str, Any]) -> str:
    """The text in a delta or a message: its `content`, which may be a list of parts."""
    content = delta.get("content")
    return content if isinstance(content, str) else _joined(content, "text")


def refusal_of_delta(delta: Mapping[str, Any]) -> str:
    """The text of a refusal in a delta or a message."""
    refusal, content = delta.get("refusal"), delta.get("content")
    text = refusal if isinstance(refusal, str) else _joined(refusal, "text")
    return text or ("" if isinstance(content, str) else _joined(content, "refusal"))


def reasoning_of_delta(delta: Mapping[str, Any]) -> str:
    """The reasoning in a delta or a message, in whichever way the upstream spells it."""
    for member in REASONING:
        if (value := delta.get(member)) and (text := flat(value)):
            return text
    for member in REASONING_BLOCKS:
        if (value := delta.get(member)) and (text := flat(value)):
            return text
    content = delta.get("content")
    return "" if isinstance(content, str) or not content else _joined(content, "thinking")


def parts_of(content: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts of a `content` that is not a string, each with its kind.

    The kind is `text`, `thinking`, `refusal`, or the member of a message in which a part of another type is kept:
    `references`, `images` or `parts`.
    """
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            yield "text", {"type": "text", "text": part}
        elif isinstance(part, Mapping):
            yield _kind_of(part), part


def details_of(chunk: Mapping[str, Any], choice: Mapping[str, Any], delta: Mapping[str, Any]) -> dict[str, Any]:
    """What a chunk holds besides words: the members of `DETAILS` in the chunk, a choice and a delta, by their names."""
    found: dict[str, Any] = {}
    content = delta.get("content")
    plain = len(delta) == 1 and type(content) is str  # as most deltas are
    for members in (chunk, choice) if plain else (chunk, choice, delta):
        if not DETAILS.isdisjoint(members):
            found.update({name: value for name, value in members.items() if name in DETAILS and value})
    if content and not isinstance(content, str):
        for kind, part in parts_of(content):
            if kind in DETAILS:
                found.setdefault(kind, []).append(part)
    return found


def calls_of(calls: object) -> list[Mapping[str, Any]]:
    """The tool calls of a delta or a message, in OpenAI's form.

    Servers also send a single call instead of a list, a call without `function`, and arguments that are an object.
    """
    listed = calls if isinstance(calls, list) else [calls]
    return [_call(call) for call in listed if isinstance(call, Mapping)]


def flat(value: object) -> str:
    """All the text in *value*: a string, or parts, blocks and objects with text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(flat, value))
    if isinstance(value, Mapping):
        return next((text for member in _TEXTS if (text := flat(value.get(member)))), "")
    return ""


_TEXTS = ("text", "thinking", "summary", "content", "reasoning", "refusal", "value")


def arguments_of(value: object) -> str:
    """The arguments of a call as JSON in a string; servers send them as an object, too."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.encode(value).decode()


def _call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if isinstance(function, Mapping):
        if isinstance(function.get("arguments"), str | None):
            return call
        return {**call, "function": {**function, "arguments": arguments_of(function["arguments"])}}
    if isinstance(call.get("name"), str):
        rest = {member: value for member, value in call.items() if member not in ("name", "arguments")}
        function = {"name": call["name"], "arguments": arguments_of(call.get("arguments"))}
        return {**rest, "function": function}
    return call


def _kind_of(part: Mapping[str, Any]) -> str:
    kind = part.get("type", "text" if "text" in part else "")
    if not isinstance(kind, str):
        return "parts"
    return _KINDS.get(kind) or ("images" if "image" in kind else "parts")


def _joined(content: object, wanted: str) -> str:
    """The text of the parts of this kind."""
    return "".join(flat(part) for kind, part in parts_of(content) if kind == wanted) if content else ""
