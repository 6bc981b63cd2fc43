"""The message that the chunks of a stream add up to, as OpenAI's SDK would build it, for every dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import (
    DETAILS,
    Chunk,
    as_delta,
    delta_of,
    find_index,
    finish_of,
    flat,
    merged,
    parts_of,
    reasoning_of_delta,
    refusal_of_delta,
)
from quart_openai_sse.protocol.pieces import Blocks, Members, Pieces, joined
from quart_openai_sse.protocol.pieces import whole as whole_text
from quart_openai_sse.protocol.usage import update_usage, usage_reports

__all__ = ["Assembly"]


class Assembly:
    """Builds a `chat.completion` from the chunks of a stream, or from an answer in one piece.

    *n* is how many choices were asked for. With one, all chunks are parts of it, whatever index they have. From *limit*
    bytes of chunks on, `message()` returns `None`.
    """

    def __init__(self, *, n: int = 1, limit: int = 1 << 26) -> None:
        self._n = n
        self._room = limit
        self._head: dict[str, Any] = {}
        self._known = {"object", "choices", "usage", "obfuscation", "error"}
        """The members of chunks that need no look any more: most chunks repeat all that they have beside choices."""
        self._choices: dict[int, _Choice] = {}
        self.finish_reasons: dict[int, str] = {}
        self.usage: dict[str, Any] | None = None

    @property
    def details(self) -> dict[str, Any]:
        """What is known of the first choice besides its words, such as citations: the members named in `DETAILS`."""
        found = {member: value for member, value in self._head.items() if member in DETAILS}
        if (choice := self._choices.get(0)) is not None:
            for members in (choice.others, choice.message, choice.parts):
                for member, value in members.items():
                    if member in DETAILS:
                        found[member] = merged(found.get(member), joined(value))
        return found

    def add(self, data: bytes, *, whole: bool = False) -> None:
        """Adds a chunk in JSON. If it cannot be decoded (`1e999`), `message()` returns `None` from then on.

        *whole*: the chunk has a `message`, and no delta of it came; an answer that was not streamed is such a chunk.
        """
        if self._room <= 0:
            return
        try:
            self.add_chunk(json.decode(data), size=len(data), whole=whole)
        except ValueError:
            self._room = 0

    def add_chunk(self, chunk: Chunk, *, size: int = 0, whole: bool = False) -> None:
        """Adds a chunk; *size*, in bytes, counts against the limit."""
        self._room -= size
        if self._room <= 0:
            return
        for member, value in chunk.items():
            if member not in self._known:
                self._add_to_head(member, value)
        reports = chunk.get("usage") or "x_groq" in chunk
        choices = chunk.get("choices")
        first = self._n == 1
        for choice in choices if isinstance(choices, list) else ():
            if type(choice) is dict or isinstance(choice, Mapping):
                # One choice was asked for: the first of a chunk is it, whatever its index is.
                self._add_choice(choice, 0 if first or (self._n == 1 and not whole) else find_index(choice) or 0, whole)
                first = False
                reports = reports or "usage" in choice
        if reports:
            for usage in usage_reports(chunk.get("usage"), chunk.get("x_groq"), choices):
                self.usage = update_usage(self.usage, usage)

    def message(self) -> dict[str, Any] | None:
        """The `chat.completion` object that the chunks add up to so far, or `None` (see the class)."""
        if self._room <= 0:
            return None
        choices = [
            {
                **joined(choice.others),
                "index": index,
                "message": choice.as_message(),
                "logprobs": joined(choice.logprobs) or None,
                "finish_reason": self.finish_reasons.get(index),
            }
            for index, choice in sorted(self._choices.items())
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self.usage}

    def first_message(self) -> dict[str, Any] | None:
        """The message of the first choice so far, or `None` without a first choice or beyond the limit."""
        choice = self._choices.get(0)
        return None if self._room <= 0 or choice is None else choice.as_message()

    @property
    def added(self) -> frozenset[str]:
        """The members of that message which the upstream has not named: they hold parts of its content."""
        choice = self._choices.get(0)
        return frozenset(() if choice is None else choice.parts.keys() - choice.message.keys())

    @property
    def reasoning(self) -> str:
        """The reasoning of the first choice so far, in whichever members it came."""
        choice = self._choices.get(0)
        return "" if choice is None else whole_text("".join(choice.reasoning))

    def _add_to_head(self, member: str, value: Any) -> None:
        """Adds a member that stands beside the choices."""
        if member in DETAILS:
            self._head[member] = merged(self._head.get(member), value)
        elif value not in (None, "", 0):
            self._head[member] = value
            self._known.add(member)

    def _add_choice(self, choice: Mapping[str, Any], index: int, whole: bool) -> None:
        kept = self._choices.get(index)
        if kept is None:
            kept = self._choices[index] = _Choice()
        kept.add(choice, as_delta(choice, whole=True)["delta"] if whole else delta_of(choice))
        if reason := finish_of(choice.get("finish_reason")):
            self.finish_reasons[index] = reason


class _Choice:
    """One choice: its message, and what came beside it."""

    __slots__ = ("logprobs", "message", "others", "parts", "reasoning")

    def __init__(self) -> None:
        self.message = Members()
        self.logprobs = Members()
        self.others = Members()
        """Further members of the choice."""
        self.parts = Members()
        """What the content held besides text, if it was a list of parts: `reasoning`, `references`, `images`."""
        self.reasoning: list[str] = []

    def add(self, choice: Mapping[str, Any], delta: Mapping[str, Any]) -> None:
        """Adds the members of a choice of which *delta* is the delta, or the message."""
        content = delta.get("content")
        if type(content) is str:
            if type(pieces := self.message.get("content")) is Pieces:
                pieces.append(content)
            else:
                self.message["content"] = Pieces([content])
        if len(delta) > 1 or type(content) is not str:  # most deltas are nothing but text
            self._add_members(delta)
        for member, value in choice.items():
            if value is not None and member not in _NOT_OTHERS:
                self._add_other(member, value)

    def _add_members(self, delta: Mapping[str, Any]) -> None:
        """Adds the members of a delta, without text as its content."""
        for member, value in delta.items():
            if member == "content" and value and not isinstance(value, str):
                self._add_parts(value)
            elif value is not None and member not in ("content", "refusal"):
                self.message.add_member(member, value)
        if refusal := refusal_of_delta(delta):
            self.message.slot("refusal", Pieces).append(refusal)
        elif isinstance(delta.get("refusal"), str):
            self.message.slot("refusal", Pieces)
        if said := reasoning_of_delta(delta):
            self.reasoning.append(said)

    def _add_other(self, member: str, value: Any) -> None:
        """Adds a member of the choice beside its delta."""
        if member == "logprobs" and isinstance(value, Mapping):
            self.logprobs.add(value)
        elif member in DETAILS or isinstance(value, list | str):
            self.others.add_member(member, value)
        else:
            self.others[member] = value

    def as_message(self) -> dict[str, Any]:
        """The message."""
        message = {"role": "assistant", "content": None, **joined(self.message)}
        for member, value in joined(self.parts).items():
            message[member] = merged(message.get(member), value) if member in DETAILS else message.get(member) or value
        return message

    def _add_parts(self, content: Any) -> None:
        for kind, part in parts_of(content):
            if kind == "text":
                self.message.slot("content", Pieces).append(flat(part))
            elif kind == "thinking":
                self.parts.slot("reasoning", Pieces).append(flat(part))
            if kind in DETAILS:
                self.parts[kind] = merged(self.parts.get(kind), [part])
            elif kind == "thinking" and part.get("signature"):
                self.parts.slot("thinking_blocks", Blocks).add([part])
            if isinstance(annotations := part.get("annotations"), list):
                self.parts["annotations"] = merged(self.parts.get("annotations"), annotations)


_NOT_OTHERS = frozenset({"index", "delta", "message", "text", "finish_reason", "usage", "error"})
