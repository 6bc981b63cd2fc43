"""The message that chunks add up to, accumulated as OpenAI's SDK does, and the sum of usages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import Chunk, find_index


class Assembly:
    """Builds a `chat.completion` from the chunks of a stream, or from an answer in one piece.

    From *limit* bytes of chunks on, `message()` returns `None`.
    """

    def __init__(self, *, limit: int = 1 << 26) -> None:
        self._room = limit
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, _Members]] = {}
        self.finish_reasons: dict[int, str] = {}
        self.usage: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        """The `id` of the first chunk that has one, or ""."""
        return str(self._head.get("id") or "")

    @property
    def model(self) -> str:
        """The `model` of the first chunk that names one, or ""."""
        return str(self._head.get("model") or "")

    def add(self, data: bytes) -> None:
        """Adds a chunk in JSON. If it cannot be decoded (`1e999`), `message()` returns `None` from then on."""
        if self._room <= 0:
            return
        try:
            self.add_chunk(json.decode(data), size=len(data))
        except ValueError:
            self._room = 0

    def add_chunk(self, chunk: Chunk, *, size: int = 0) -> None:
        """Adds a chunk; *size*, in bytes, counts against the limit."""
        self._room -= size
        if self._room <= 0:
            return
        for member, value in chunk.items():
            if member not in _NOT_HEAD and value not in (None, "", 0):
                self._head.setdefault(member, value)
        if isinstance(usage := chunk.get("usage"), dict):
            self.usage = usage
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._add_choice(choice)

    def message(self) -> dict[str, Any] | None:
        """The `chat.completion` object that the chunks add up to so far, or `None` (see the class)."""
        if self._room <= 0:
            return None
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": None, **_joined(choice["message"])},
                "logprobs": _joined(choice["logprobs"]) or None,
                "finish_reason": self.finish_reasons.get(index),
            }
            for index, choice in sorted(self._choices.items())
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self.usage}

    def _add_choice(self, choice: Mapping[str, Any]) -> None:
        index = find_index(choice) or 0
        kept = self._choices.setdefault(index, {"message": _Members(), "logprobs": _Members()})
        # An answer in one piece has a message instead of a delta.
        said = choice["delta"] if "delta" in choice else choice.get("message")
        for name, value in (("message", said), ("logprobs", choice.get("logprobs"))):
            if isinstance(value, dict):
                _accumulate(kept[name], value)
        finish_reason = choice.get("finish_reason")
        if isinstance(finish_reason, str) and finish_reason:
            self.finish_reasons[index] = finish_reason


_NOT_HEAD = frozenset({"object", "choices", "usage", "obfuscation", "error"})


# Deltas are added up in pieces that are joined once -----------------------------------------------------------------


class _Pieces(list[str]):
    """A string, in the pieces that are not joined yet."""


class _Members(dict[str, Any]):
    """An object that deltas are added to. Any other `dict` is kept as it came."""


class _Calls(list[_Members]):
    """Tool calls that deltas are added to."""

    def __init__(self) -> None:
        self._latest: dict[int | None, _Members] = {}  # by index; under None the latest of all
        self._known: dict[tuple[int | None, str], _Members] = {}

    def find(self, delta: Mapping[str, Any]) -> _Members:
        """The call that *delta* belongs to. Ollama omits `index` or repeats it: then a new `id` is a new call."""
        index, call_id = find_index(delta), _id(delta)
        call = self._latest.get(index)
        if call_id and call is not None and call.get("id"):
            call = self._known.get((index, call_id))
        if call is None:
            call = _Members()
            self.append(call)
        self._latest[index] = self._latest[None] = call
        if call_id:
            self._known[index, call_id] = self._known[None, call_id] = call
        return call


# OpenAI sends these once, other servers with every delta: the first value is kept.
_SET_ONCE = frozenset({"role", "id", "type", "name", "index"})

_DEPTH = 16  # levels of objects that are added up, far more than any API has


def _accumulate(target: _Members, delta: Mapping[str, Any], depth: int = _DEPTH) -> None:
    for member, value in delta.items():
        if value is None:
            continue
        if member in _SET_ONCE:
            if not target.get(member):
                target[member] = value
        elif isinstance(value, str):
            _slot(target, member, _Pieces).append(value)
        elif member == "tool_calls" and isinstance(value, list) and depth:
            _accumulate_calls(_slot(target, member, _Calls), value, depth - 1)
        elif isinstance(value, list):
            _slot(target, member, list).extend(value)
        elif isinstance(value, dict) and depth:
            _accumulate(_slot(target, member, _Members), value, depth - 1)
        else:
            target[member] = value


def _accumulate_calls(calls: _Calls, deltas: list[Any], depth: int) -> None:
    for delta in deltas:
        if isinstance(delta, dict):
            _accumulate(calls.find(delta), delta, depth)


def _slot(target: _Members, member: str, kind: type[Any]) -> Any:
    """The value of *member*, of type *kind*; a new one if *member* had another type so far."""
    if type(target.get(member)) is not kind:
        target[member] = kind()
    return target[member]


def _joined(value: Any) -> Any:
    if isinstance(value, _Pieces):
        return whole("".join(value))
    if isinstance(value, _Calls):
        return [_call(_joined(call)) for call in value]
    if isinstance(value, _Members):
        return {member: _joined(inner) for member, inner in value.items()}
    return value


def whole(text: str) -> str:
    """*text* with surrogate pairs joined, such as an emoji whose halves came in two chunks. A lone half stays."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _call(members: dict[str, Any]) -> dict[str, Any]:
    """A tool call as in a message: with a `type`, and without the `index` it had in the stream."""
    members = {"type": "function", **members}
    members.pop("index", None)
    return members


def _id(value: Mapping[str, Any]) -> str:
    identifier = value.get("id")
    return str(identifier) if isinstance(identifier, str | int) else ""


# Usage --------------------------------------------------------------------------------------------------------------


def add_usage(total: Mapping[str, Any] | None, usage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The sum of two `usage` objects, member by member, details included; `None` adds nothing."""
    if total is None or usage is None:
        known = total if usage is None else usage
        return dict(known) if known is not None else None
    return _sum(total, usage, depth=_DEPTH)


def _sum(total: Mapping[str, Any], usage: Mapping[str, Any], *, depth: int) -> dict[str, Any]:
    summed = dict(total)
    for member, value in usage.items():
        before = summed.get(member)
        if before is None:
            summed[member] = value
        elif isinstance(before, Mapping) and isinstance(value, Mapping) and depth:
            summed[member] = _sum(before, value, depth=depth - 1)
        elif _is_count(before) and _is_count(value):
            summed[member] = before + value
    return summed


def _is_count(value: object) -> bool:
    # At most 64 bits: an int beyond a float's range cannot be added to a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 63
