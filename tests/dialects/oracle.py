"""The harness's own reading of a stream, written from the rules and not from the product's code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.dialects.sample import Frame

FAILURES = ("error", "abort", "insufficient_system_resource", "network_error")
"""Finish reasons of a stream that broke."""
COUNTS = ("prompt_tokens", "completion_tokens")
TOP = ("citations", "search_results", "prompt_filter_results")
IN_DELTA = ("annotations", "images")


@dataclass
class Reading:
    """What a stream said, and how it ended."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    usage: tuple[int, int] | None = None
    outcome: str = "failed"
    finish_reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


def read(frames: Iterable[Frame], *, whole: bool = True, lenient: bool = False, done: bool = True) -> Reading:
    """The reading of these events, of a request for one choice.

    Unless *whole*, the connection broke after them. With *lenient*, `[DONE]` needs no finish reason. Unless *done*, the
    reader is not told of `[DONE]`.
    """
    reader = _Reader()
    for frame in frames:
        if frame.is_done:
            reader.done = done
            break
        reader.feed(frame)
        if reader.failed:
            break
    return reader.reading(whole=whole, lenient=lenient)


def is_answer(frames: Iterable[Frame]) -> bool:
    """Whether text came in a `message` instead of deltas: a client of the OpenAI format is given it as a delta."""
    reader = _Reader()
    for frame in frames:
        if not frame.is_done and not reader.failed:
            reader.feed(frame)
    return reader.used_message


def is_usage_alone(data: bytes) -> bool:
    """Whether a chunk says nothing but usage."""
    chunk = json.loads(data)
    if not isinstance(chunk, dict) or not isinstance(chunk.get("usage"), dict):
        return False
    if any(chunk.get(member) for member in (*TOP, "error")):
        return False
    return not any(
        choice.get("finish_reason") or choice.get("message") or any((choice.get("delta") or {}).values())
        for choice in chunk["choices"]
    )


def flat(content: Any) -> str:
    """The text of a content: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(_string(part.get("text")) for part in parts if isinstance(part, dict) and part.get("type") == "text")


def arguments_of(text: Any) -> Any:
    """The arguments of a call, to compare: parsed, where they are JSON."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


class _Reader:
    """Reads chunk by chunk. All choices count as one, since one was asked for."""

    def __init__(self) -> None:
        self.done = self.failed = self.used_message = False
        self._found = Reading()
        self._said_delta = self._finished = self._unnamed = self._open = self._broke = False
        self._calls: list[_Call] = []
        self._at: dict[int | None, _Call] = {}

    def feed(self, frame: Frame) -> None:
        chunk = json.loads(frame.data)
        if not isinstance(chunk, dict) or frame.event == "error":
            self.failed = True
            return
        self._usage(chunk.get("usage"))
        self._usage((chunk.get("x_groq") or {}).get("usage"))
        choices = chunk.get("choices") or []
        for choice in choices:
            self._usage(choice.get("usage"))
        if chunk.get("error") or any(choice.get("error") for choice in choices):
            self.failed = True
            return
        for member in TOP:
            if chunk.get(member):
                self._found.details[member] = chunk[member]
        for choice in choices:
            self._choice(choice)

    def reading(self, *, whole: bool, lenient: bool) -> Reading:
        found = self._found
        found.calls = [(call.name, call.arguments) for call in self._calls]
        if self.failed or self._broke:
            ended = False
        elif self.done:
            ended = self._finished or self._unnamed or lenient
        else:
            ended = whole and self._finished and not self._open
        found.outcome = "completed" if ended else "failed"
        return found

    def _usage(self, usage: Any) -> None:
        counts = tuple((usage if isinstance(usage, dict) else {}).get(name) or 0 for name in COUNTS)
        if any(counts):
            self._found.usage = (counts[0], counts[1])

    def _choice(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta") or {}
        if any(value for member, value in delta.items() if member != "role"):
            self._said_delta = True
        elif not self._said_delta:
            delta = choice.get("message") or {}
            self.used_message = self.used_message or bool(delta)
        if any(value for member, value in delta.items() if member != "role"):
            self._open = True
            self._delta(delta)
        reason = choice.get("finish_reason")
        self._unnamed = self._unnamed or reason == ""
        if reason in FAILURES:
            self._broke = True
        elif reason and reason != "null":
            self._finished, self._open = True, False
            self._found.finish_reason = reason

    def _delta(self, delta: Mapping[str, Any]) -> None:
        found = self._found
        content = delta.get("content")
        found.text += flat(content)
        found.reasoning += _reasoning(delta, content)
        refusal = _string(delta.get("refusal"))
        found.refusal += refusal
        found.text += refusal
        for member in IN_DELTA:
            if delta.get(member):
                found.details.setdefault(member, []).extend(delta[member])
        pieces = delta.get("tool_calls") or []
        for piece in [pieces] if isinstance(pieces, dict) else pieces:
            self._piece(piece)

    def _piece(self, piece: Mapping[str, Any]) -> None:
        function = piece.get("function") or {}
        name, arguments, call_id = function.get("name") or "", function.get("arguments"), piece.get("id") or ""
        index = piece.get("index")
        call = self._continued(index, name, call_id)
        if call is None:
            call = _Call(call_id)
            self._calls.append(call)
        self._at[index] = self._at[None] = call
        call.id = call.id or call_id
        call.name = call.name or name
        call.arguments += arguments if isinstance(arguments, str) else _json(arguments)

    def _continued(self, index: int | None, name: str, call_id: str) -> _Call | None:
        """The call that a piece continues, if it begins none."""
        current = self._at.get(index)
        known = next((call for call in self._calls if call_id and call.id == call_id), None)
        if current is None or (index is None and known is not None):
            return known if index is None else None
        if not name or not current.name:
            return current
        if call_id:
            return known
        return current if name == current.name and not current.is_whole else None


@dataclass
class _Call:
    id: str
    name: str = ""
    arguments: str = ""

    @property
    def is_whole(self) -> bool:
        try:
            json.loads(self.arguments)
        except ValueError:
            return False
        return True


def _reasoning(delta: Mapping[str, Any], content: Any) -> str:
    """The reasoning of one delta: the first of its spellings, since some servers use several at once."""
    for member in ("reasoning_content", "reasoning", "reasoning_text", "thinking"):
        if isinstance(text := delta.get(member), str) and text:
            return text
    spellings: Sequence[Any] = (delta.get("thinking_blocks"), delta.get("reasoning_details"), content)
    for parts in spellings:
        if isinstance(parts, list) and (text := "".join(map(_part_reasoning, parts))):
            return text
    return ""


def _part_reasoning(part: Mapping[str, Any]) -> str:
    if part.get("type") == "thinking":
        thinking = part.get("thinking")
        return "".join(map(_part_text, thinking)) if isinstance(thinking, list) else _string(thinking)
    if str(part.get("type")).startswith("reasoning."):
        return _string(part.get("text") or part.get("summary"))
    return ""


def _part_text(part: Mapping[str, Any]) -> str:
    return _string(part.get("text"))


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value, separators=(",", ":"))
