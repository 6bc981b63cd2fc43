"""A sample: what an upstream sends for one request, and what it means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

KINDS = {
    "parts": "content as a list of parts",
    "message": "`message` beside or instead of `delta`",
    "reasoning": "reasoning under its various names, and members that each delta repeats",
    "calls": "the pieces of tool calls",
    "details": "citations, annotations, images, refusals",
    "usage": "where usage stands",
    "ids": "the ids of chunks",
    "endings": "finish reasons, errors and `[DONE]`",
    "transforms": "every place that holds text, for a transform that redacts",
}

SECRET = "swordfish"
"""The word that the redacting transform removes."""


class Frame(NamedTuple):
    """One event: its bytes on the wire, and its fields."""

    wire: bytes
    data: bytes
    event: str = ""

    @property
    def is_done(self) -> bool:
        return self.data.strip() == b"[DONE]"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A stream, or with *body* an answer in one piece, and the right reading of it.

    *usage* is the pair of prompt and completion tokens. *message* are members that the assistant's message must have,
    *keeps* JSON values that the message or the details must contain somewhere.
    """

    name: str
    kind: str
    events: Sequence[Any] = ()
    """An object is sent as JSON, text as it is: `[DONE]`."""
    frames: Sequence[Frame] = ()
    """The events as bytes; by default those of *events*."""
    body: bytes = b""
    text: str = ""
    """With a refusal, its text as well."""
    reasoning: str = ""
    refusal: str = ""
    calls: Sequence[tuple[str, str]] = ()
    """The name and the arguments of each."""
    usage: tuple[int, int] | None = None
    outcome: str = "completed"
    finish_reason: str | None = "stop"
    details: Mapping[str, Any] = field(default_factory=dict)
    message: Mapping[str, Any] = field(default_factory=dict)
    keeps: Sequence[Any] = ()
    lenient: str = ""
    """The outcome with `require_finish_reason=False`, where that differs."""
    remark: str = ""
    """What a file of cases says of itself; it is printed."""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind
        if self.body and not self.frames:
            # A server that ignores `stream` sends its answer as the only event.
            object.__setattr__(self, "frames", (frame(json.loads(self.body)), frame("[DONE]")))
        elif not self.frames:
            object.__setattr__(self, "frames", tuple(map(frame, self.events)))

    @property
    def wire(self) -> bytes:
        return b"".join(each.wire for each in self.frames)


def frame(event: Any) -> Frame:
    """An event with this data."""
    data = event.encode() if isinstance(event, str) else dumped(event)
    return Frame(b"data: " + data + b"\n\n", data)


def dumped(value: Any) -> bytes:
    """*value* as JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


# Chunks -------------------------------------------------------------------------------------------------------------

HEAD = {"id": "cmpl-7", "object": "chat.completion.chunk", "created": 1700000000, "model": "dialect"}
DONE = "[DONE]"


def said(delta: Any, finish: str | None = None, /, **members: Any) -> dict[str, Any]:
    """A chunk with one choice. *delta* may be the text alone; *members* are members of the chunk."""
    delta = {"content": delta} if isinstance(delta, str) else delta
    return {**HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **members}


def role(**members: Any) -> dict[str, Any]:
    """The chunk that most streams begin with."""
    return said({"role": "assistant", "content": ""}, **members)


def counted(prompt: int, completion: int, *, total: bool = True) -> dict[str, int]:
    """A `usage`."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {**usage, "total_tokens": prompt + completion} if total else usage


def counts(prompt: int, completion: int, /, **members: Any) -> dict[str, Any]:
    """The chunk with usage that OpenAI sends last."""
    return {**HEAD, "choices": [], "usage": counted(prompt, completion), **members}


def piece(index: int | None = 0, /, **members: Any) -> dict[str, Any]:
    """A piece of a tool call: *name* and *arguments* go into its `function`."""
    function = {name: members.pop(name) for name in ("name", "arguments") if name in members}
    place = {} if index is None else {"index": index}
    return {**place, **members, "function": function}


def called(*pieces: Any, finish: str | None = None) -> dict[str, Any]:
    """A chunk with pieces of tool calls."""
    return said({"tool_calls": list(pieces)}, finish)


def answer(choice: Mapping[str, Any], **members: Any) -> bytes:
    """An answer in one piece."""
    head = {**HEAD, "object": "chat.completion"}
    return dumped({**head, "choices": [choice], "usage": counted(9, 4), **members})
