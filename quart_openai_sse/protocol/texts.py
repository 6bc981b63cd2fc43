"""The text in a chunk, for transforms: all of it, wherever the upstream's dialect has it, to read and to replace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from quart_openai_sse.protocol.chunks import (
    REASONING,
    REASONING_BLOCKS,
    TEXTS,
    delta_of,
    find_index,
    flat,
    parts_of,
    reasoning_of_delta,
    refusal_of_delta,
    text_of_delta,
)
from quart_openai_sse.protocol.tool_calls import arguments_of, calls_of

__all__ = ["CONTENT", "Place", "places_of", "text_of", "with_text"]


class Place(NamedTuple):
    """Where a text is: the texts of one place, chunk by chunk, add up to one text of the answer."""

    choice: int = 0
    """The index of the choice."""
    kind: Literal["content", "reasoning", "refusal", "arguments", "transcript"] = "content"
    """`arguments` is the input of a tool call, `transcript` what a spoken answer says."""
    call: int = 0
    """The index of the tool call, for `arguments`; -1 for the older `function_call`."""


CONTENT = Place()
"""The content of the first choice."""


def text_of(chunk: Mapping[str, Any], place: Place | None = None) -> str:
    """The text of *chunk* at *place*, or "" if it has none there; without a place all of its text, one after the other.

    Text that the upstream says twice, as reasoning in two members, is returned once. *chunk* is a chunk as a transform
    gets it; its choices are read, and nothing else.
    """
    if place is not None:
        return _texts(chunk).get(place, "")
    choices = chunk["choices"]
    if len(choices) == 1:  # nearly every chunk has one choice with a content alone
        delta = choices[0].get("delta")
        if delta and len(delta) == 1 and isinstance(content := delta.get("content"), str):
            return content
    return "".join(_texts(chunk).values())


def places_of(chunk: Mapping[str, Any]) -> list[Place]:
    """The places at which *chunk* has text."""
    return list(_texts(chunk))


def with_text(chunk: Mapping[str, Any], text: str, place: Place = CONTENT) -> Mapping[str, Any]:
    """*chunk* with *text* at *place*, in each member in which the upstream has said it; other members as they are.

    Returns a new chunk, or *chunk* itself if that is its text already. A chunk without a text there gets one:
    `with_text({"choices": []}, "Bye.")` is a chunk of an app's own. The log probabilities of a choice whose text is
    replaced are left out, since they spell out the old one.
    """
    if _texts(chunk).get(place, "") == text:
        return chunk
    choices = list(chunk["choices"])
    numbers = [n for n, each in enumerate(choices) if (find_index(each) or 0) == place.choice]
    if not numbers:
        choices.append({"index": place.choice, "delta": _replaced({}, text, place), "finish_reason": None})
    # A choice may come twice in a chunk: then the first one that has text at the place gets all of it.
    numbers.sort(key=lambda n: not _texts({"choices": [choices[n]]}).get(place))
    for n in numbers:
        choice = choices[n]
        others = {name: value for name, value in choice.items() if name not in ("message", "text", "logprobs")}
        if n == numbers[0] or _texts({"choices": [choice]}).get(place):
            delta = delta_of(choice, whole="delta" not in choice)
            choices[n] = {**others, "delta": _replaced(delta, text if n == numbers[0] else "", place)}
    return {**chunk, "choices": choices}


def _texts(chunk: Mapping[str, Any]) -> dict[Place, str]:
    """All texts of *chunk*, by their places."""
    found: dict[Place, str] = defaultdict(str)
    for choice in chunk["choices"]:
        index, delta = find_index(choice) or 0, delta_of(choice, whole="delta" not in choice)
        found[Place(index, "reasoning")] += _reasoning(delta)
        found[Place(index)] += text_of_delta(delta)
        found[Place(index, "refusal")] += _refusal(delta)
        if isinstance(audio := delta.get("audio"), Mapping):
            found[Place(index, "transcript")] += flat(audio.get("transcript"))
        for number, call in enumerate(calls_of(delta.get("tool_calls"))):
            member = find_index(call)
            found[Place(index, "arguments", number if member is None else member)] += _arguments(call)
        if isinstance(delta.get("function_call"), Mapping):
            found[Place(index, "arguments", -1)] += _arguments({"function": delta["function_call"]})
    return {place: text for place, text in found.items() if text}


def _refusal(delta: Mapping[str, Any]) -> str:
    """All of a refusal in *delta*, which is repeated if it is in a member and in parts of the content."""
    said, parts = refusal_of_delta(delta), refusal_of_delta({"content": delta.get("content")})
    return said if parts in said else said + parts


def _reasoning(delta: Mapping[str, Any]) -> str:
    """All reasoning in *delta*. A member that says what another one says, or a part of it, is not repeated."""
    content = delta.get("content")
    said = [flat(delta.get(member)) for member in REASONING]
    said += [_every_text(delta.get(member)) for member in REASONING_BLOCKS if delta.get(member)]
    if content and not isinstance(content, str):
        said.append(reasoning_of_delta({"content": content}))
    distinct: list[str] = []
    for text in sorted(filter(None, said), key=len, reverse=True):
        if not any(text in other for other in distinct):
            distinct.append(text)
    return "".join(distinct)


def _every_text(value: Any) -> str:
    """The text of blocks of reasoning, in every member that holds some."""
    if isinstance(value, list):
        return "".join(map(_every_text, value))
    if not isinstance(value, Mapping):
        return flat(value)
    found = [text for member in TEXTS if (text := flat(value.get(member)))]
    return "".join(dict.fromkeys(found))


def _replaced(delta: Mapping[str, Any], text: str, place: Place) -> dict[str, Any]:
    """*delta* with *text* at *place*."""
    if place.kind == "reasoning":
        return _with_reasoning(delta, text)
    if place.kind == "transcript":
        audio = delta.get("audio")
        return {**delta, "audio": {**(audio if isinstance(audio, Mapping) else {}), "transcript": text}}
    if place.kind == "arguments":
        return _with_arguments(delta, text, place.call)
    content = delta.get("content")
    if place.kind == "content":
        return {**delta, "content": _with_part(content, "text", text) if _is_list(content) else text}
    in_parts = _is_list(content) and refusal_of_delta({"content": content})
    said = {"content": _with_part(content, "refusal", text)} if in_parts else {}
    return {**delta, **said} if in_parts and not delta.get("refusal") else {**delta, **said, "refusal": text}


def _with_reasoning(delta: Mapping[str, Any], text: str) -> dict[str, Any]:
    said: dict[str, Any] = {member: text for member in REASONING if flat(delta.get(member))}
    for member in REASONING_BLOCKS:
        if _every_text(blocks := delta.get(member)):
            said[member] = _with_blocks(blocks if isinstance(blocks, list) else [blocks], text)
    content = delta.get("content")
    if _is_list(content) and reasoning_of_delta({"content": content}):
        said["content"] = _with_part(content, "thinking", text)
    return {**delta, **(said or {"reasoning_content": text})}


def _with_blocks(blocks: list[Any], text: str) -> list[Any]:
    """The *blocks* with *text* in the first of those that have text, and none in the others."""
    replaced = []
    for block in blocks:
        if not _every_text(block):
            replaced.append(block)
            continue
        if isinstance(block, Mapping):
            members = [member for member in TEXTS if flat(block.get(member))]
            replaced.append({**block, **dict.fromkeys(members, ""), members[0]: text})
        else:
            replaced.append(text)
        text = ""
    return replaced


def _with_part(content: Any, kind: str, text: str) -> list[Any]:
    """The parts of *content* with *text* in place of those of this *kind*."""
    new: dict[str, Any] = {"type": "text", "text": text}
    if kind != "text":
        new = {"type": kind, kind: text if kind == "refusal" else [new]}
    replaced: list[Any] = []
    for each, part in parts_of(content):
        if each != kind:
            replaced.append(part)
        elif new not in replaced:
            replaced.append(new)
    return replaced if new in replaced else [*replaced, new]


def _with_arguments(delta: Mapping[str, Any], text: str, index: int) -> dict[str, Any]:
    if index == -1:
        call = delta.get("function_call")
        return {**delta, "function_call": {**(call if isinstance(call, Mapping) else {}), "arguments": text}}
    calls, written = [], False
    for number, call in enumerate(calls_of(delta.get("tool_calls"))):
        member = find_index(call)
        if (number if member is None else member) == index and _arguments(call):
            call = _with_input(call, "" if written else text)
            written = True
        calls.append(call)
    if not written:
        calls.append({"index": index, "function": {"arguments": text}})
    return {**delta, "tool_calls": calls}


def _with_input(call: Mapping[str, Any], text: str) -> Mapping[str, Any]:
    if isinstance(custom := call.get("custom"), Mapping):
        return {**call, "custom": {**custom, "input": text}}
    function = call.get("function")
    return {**call, "function": {**(function if isinstance(function, Mapping) else {}), "arguments": text}}


def _arguments(call: Mapping[str, Any]) -> str:
    function, custom = call.get("function"), call.get("custom")
    if isinstance(function, Mapping):
        return arguments_of(function.get("arguments"))
    return flat(custom.get("input")) if isinstance(custom, Mapping) else ""


def _is_list(content: object) -> bool:
    return bool(content) and not isinstance(content, str)
