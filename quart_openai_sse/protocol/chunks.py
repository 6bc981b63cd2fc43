"""One reading of a chunk, for all that needs to know what a chunk says, whatever dialect its upstream speaks.

docs/reference/dialects.md lists the dialects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.tool_calls import calls_of

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

FAILED = frozenset(
    {
        "abort",
        "aborted",
        "canceled",
        "cancelled",
        "error",
        "failed",
        "insufficient_system_resource",
        "network_error",
        "server_error",
        "timeout",
    }
)
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
    if type(index) is str and index.isdecimal() and len(index) < _MOST_DIGITS:
        return int(index)
    return index if type(index) is int else None  # True is an int to Python, and not to JSON


_MOST_DIGITS = 10


def has_output(delta: Mapping[str, Any]) -> bool:
    """Whether *delta* holds output: a member other than `role` that is not empty."""
    # A loop, because any() makes Completion.feed 52 % slower for a tool call (Python 3.13: 29 %).
    for member, value in delta.items():  # noqa: SIM110
        if value and member != "role":
            return True
    return False


def has_words(delta: Mapping[str, Any]) -> bool:
    """Whether *delta* continues an answer: by text, reasoning, a refusal, a tool call or sound, not only by details."""
    if any(delta.get(member) for member in ("tool_calls", "function_call", "audio")):
        return True
    return bool(text_of_delta(delta) or refusal_of_delta(delta) or reasoning_of_delta(delta))


def finish_of(reason: object) -> str:
    """A choice's `finish_reason`, or "" if it has none. Some servers write "null" in chunks that do not finish."""
    return reason if isinstance(reason, str) and reason.lower() != "null" else ""


def first_choice(chunk: Mapping[str, Any], *, n: int = 1) -> Mapping[str, Any] | None:
    """The choice of *chunk* that belongs to the first of *n* choices.

    A request for one choice has one, whatever index its chunks give it: some servers count chunks by it, and GitHub
    Copilot's API has the text and the tool calls of an answer in two choices.
    """
    choices = chunk.get("choices")
    if type(choices) is list and len(choices) == 1 and type(choices[0]) is dict:  # as in nearly every chunk
        [choice] = choices
        return choice if n == 1 or (find_index(choice) or 0) == 0 else None
    found = [
        choice
        for choice in (choices if isinstance(choices, list) else ())
        if isinstance(choice, Mapping) and (n == 1 or (find_index(choice) or 0) == 0)
    ]
    return one_choice(found) if found else None


def one_choice(choices: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The choices of one chunk that are parts of one answer, as one choice."""
    first, *others = choices
    joined = dict(first)
    for other in others:
        for member, value in other.items():
            known = joined.get(member)
            if member in ("delta", "message") and isinstance(known, Mapping) and isinstance(value, Mapping):
                joined[member] = _one_delta(known, value)
            elif value is not None and (known is None or member == "finish_reason"):
                joined[member] = value
    return joined


def _one_delta(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    joined = dict(one)
    for member, value in other.items():
        known = joined.get(member)
        both = isinstance(known, str) and isinstance(value, str) and member != "role"
        if both or (isinstance(known, list) and isinstance(value, list)):
            joined[member] = known + value
        elif value and not known:
            joined[member] = value
    return joined


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


def as_delta(choice: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    """A choice with what it says as a `delta`, also if that was a `message`, whose lists are not numbered."""
    delta = delta_of(choice, whole=whole)
    is_message = delta is not choice.get("delta")
    if is_message and (calls := delta.get("tool_calls")):
        delta = {**delta, "tool_calls": [{**call, "index": n} for n, call in enumerate(calls_of(calls))]}
    for member in REASONING_BLOCKS if is_message else ():
        if isinstance(blocks := delta.get(member), list):
            numbered = ({"index": n, **each} if isinstance(each, Mapping) else each for n, each in enumerate(blocks))
            delta = {**delta, member: list(numbered)}
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
        if isinstance(part, str | list):
            yield "text", {"type": "text", "text": flat(part)}
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
                found[kind] = merged(found.get(kind), [part])
            if isinstance(annotations := part.get("annotations"), list):
                found["annotations"] = merged(found.get("annotations"), annotations)
    return found


def merged(known: Any, value: Any) -> Any:
    """Details after one more report. Some servers send a list in pieces, others all of it again with each chunk."""
    if not value:
        return known
    if not isinstance(known, list) or not isinstance(value, list):
        return value
    if known == value:
        return known
    have = set(map(json.encode, known))  # as text, since objects can't be looked up, and lists may be very long
    return known + [item for item in value if json.encode(item) not in have]


def flat(value: object, depth: int = 8) -> str:
    """All the text in *value*: a string, or parts, blocks and objects with text."""
    if isinstance(value, str):
        return value
    if not depth:
        return ""
    if isinstance(value, list):
        return "".join(flat(item, depth - 1) for item in value)
    if isinstance(value, Mapping):
        return next((text for member in TEXTS if (text := flat(value.get(member), depth - 1))), "")
    return ""


TEXTS = ("text", "thinking", "summary", "content", "reasoning", "refusal", "value")


def _kind_of(part: Mapping[str, Any]) -> str:
    kind = part.get("type", "text" if "text" in part else "")
    if not isinstance(kind, str):
        return "parts"
    if kind in _KINDS:
        return _KINDS[kind]
    return "images" if "image" in kind else "text" if isinstance(part.get("text"), str) else "parts"


def _joined(content: object, wanted: str) -> str:
    """The text of the parts of this kind."""
    return "".join(flat(part) for kind, part in parts_of(content) if kind == wanted) if content else ""
