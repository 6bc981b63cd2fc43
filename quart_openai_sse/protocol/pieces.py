"""Deltas added up: objects whose members come in pieces, tool calls, and blocks of reasoning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import (
    DETAILS,
    REASONING,
    REASONING_BLOCKS,
    find_index,
    flat,
    merged,
)
from quart_openai_sse.protocol.tool_calls import arguments_of, calls_of

_DEPTH = 16  # levels of objects that are added up, far more than any API has

# OpenAI sends these once, other servers with every delta: the first value is kept.
_SET_ONCE = frozenset({"role", "id", "type", "name", "index", "channel", "format", "object", "status"})

# Text that comes in pieces, also if two pieces are equal.
_TEXTS = frozenset({"content", "refusal", "arguments", "input", "text", "summary", "transcript", "data", *REASONING})


class Pieces(list[str]):
    """A string, in the pieces that are not joined yet."""


class Repeated:
    """A string that is not known to be text: as long as each delta has the same one, it counts once."""

    def __init__(self, value: str) -> None:
        self.value = value
        self.count = 1


class Members(dict[str, Any]):
    """An object that deltas are added to. Any other `dict` is kept as it came."""

    def add(self, delta: Mapping[str, Any], depth: int = _DEPTH) -> None:
        """Adds the members of *delta*."""
        for member, value in delta.items():
            if value is not None:
                self.add_member(member, value, depth)

    def add_member(self, member: str, value: Any, depth: int = _DEPTH) -> None:
        """Adds one member of a delta."""
        if member == "arguments":
            value = arguments_of(value)
        if member in _SET_ONCE:
            if not self.get(member):
                self[member] = value
        elif isinstance(value, str):
            self._add_text(member, value)
        elif member == "tool_calls" and isinstance(value, list | Mapping) and depth:
            self.slot(member, Calls).add(value, depth - 1)
        elif member in REASONING_BLOCKS and isinstance(value, list) and depth:
            self.slot(member, Blocks).add(value, depth - 1)
        elif member in DETAILS:
            self[member] = merged(self.get(member), value)
        elif isinstance(value, list):
            self.slot(member, list).extend(value)
        elif isinstance(value, Mapping) and depth:
            self.slot(member, Members).add(value, depth - 1)
        else:
            self[member] = value

    def slot(self, member: str, kind: type[Any]) -> Any:
        """The value of *member*, of type *kind*; a new one if *member* had another type so far."""
        if type(self.get(member)) is not kind:
            self[member] = kind()
        return self[member]

    def _add_text(self, member: str, value: str) -> None:
        known = self.get(member)
        if type(known) is Pieces:
            known.append(value)
        elif member in _TEXTS:
            self[member] = Pieces([value])
        elif type(known) is not Repeated:
            self[member] = Repeated(value)
        elif known.value == value:
            known.count += 1
        else:
            self[member] = Pieces([*[known.value] * known.count, value])


class Calls(list[Members]):
    """Tool calls that deltas are added to."""

    def __init__(self) -> None:
        self._latest: dict[int | None, Members] = {}  # by index; under None the latest of all
        self._known: dict[tuple[int | None, str], Members] = {}

    def add(self, deltas: object, depth: int = _DEPTH) -> list[tuple[Mapping[str, Any], Members]]:
        """Adds the pieces of calls in one delta. Returns each of them, in OpenAI's form, with its call."""
        named: list[Members] = []
        added = []
        for delta in calls_of(deltas):
            call = self._find(delta, named)
            call.add(delta, depth)
            if _function(delta).get("name"):
                named.append(call)
            added.append((delta, call))
        return added

    def number(self, deltas: object) -> list[dict[str, Any]]:
        """Adds the pieces of calls in one delta, and returns them, each with the number of its call as its `index`."""
        places = {id(call): place for place, call in enumerate(self)}
        added = self.add(deltas)
        for _, call in added:
            places.setdefault(id(call), len(places))
        return [{**delta, "index": places[id(call)]} for delta, call in added]

    def _find(self, delta: Mapping[str, Any], named: Sequence[Members]) -> Members:
        """The call that *delta* belongs to: the one of its index, unless it begins another call.

        *named* are the calls that the same delta has named before.

        Ollama repeats an index or omits it. Other servers repeat a call's name and id in each piece, or give each piece
        a new id, or no ids at all.
        """
        index, call_id = find_index(delta), _id(delta)
        call = self._latest.get(index)
        if call_id and (index, call_id) in self._known:
            call = self._known[index, call_id]
        elif call is None and not call_id and not _function(delta).get("name"):
            call = self._latest.get(None)  # a piece that says nothing of its own call continues the open one
        elif call is not None and (_begins(delta, call, call_id) or _is_another(delta, call, named)):
            call = None
        if call is None:
            call = Members()
            self.append(call)
        self._latest[index] = self._latest[None] = call
        if call_id:
            self._known[index, call_id] = self._known[None, call_id] = call
        return call


class Blocks(list[Members]):
    """Blocks of reasoning that deltas are added to: by their index and type, else the last one is continued."""

    def add(self, deltas: list[Any], depth: int = _DEPTH) -> None:
        """Adds the pieces of blocks in one delta."""
        for delta in deltas:
            if isinstance(delta, Mapping):
                self._find(delta).add(delta, depth)

    def _find(self, delta: Mapping[str, Any]) -> Members:
        index, kind = find_index(delta), delta.get("type")
        for block in reversed(self):
            if block.get("index") == index and block.get("type") in (kind, None):
                if _continues(delta, block):
                    return block
                break
        block = Members()
        self.append(block)
        return block


def joined(value: Any) -> Any:
    """The JSON value that deltas have added up to."""
    if isinstance(value, Pieces):
        return whole("".join(value))
    if isinstance(value, Repeated):
        return whole(value.value)
    if isinstance(value, Calls):
        return [_as_call(joined(call)) for call in value]
    if isinstance(value, Blocks):
        return [joined(block) for block in value]
    if isinstance(value, Members):
        return {member: joined(inner) for member, inner in value.items()}
    return value


def whole(text: str) -> str:
    """*text* with surrogate pairs joined, such as an emoji whose halves came in two chunks. A lone half stays."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _continues(delta: Mapping[str, Any], block: Members) -> bool:
    """Whether *delta* is a piece of *block*, which has the same index and type."""
    if delta.get("id") and block.get("id", delta["id"]) != delta["id"]:
        return False
    if block.get("signature") or block.get("data"):  # its text is whole
        return find_index(delta) is not None and not flat(delta)
    return True


def _is_another(delta: Mapping[str, Any], call: Members, named: Sequence[Members]) -> bool:
    """Whether *delta* is another call than *call*: the same delta has named it already, and it has no id."""
    return bool(_function(delta).get("name")) and not _id(delta) and any(each is call for each in named)


def _begins(delta: Mapping[str, Any], call: Members, call_id: str) -> bool:
    """Whether *delta* begins another call than *call*, which has the same index."""
    piece, known = _function(delta), _function(call)
    name, arguments = piece.get("name"), "".join(known.get("arguments", ()))
    if not name:
        return False
    if known.get("name", name) != name:
        return True
    if not arguments:  # the same name once more: the first arguments of the call, or another call without any
        return bool(call_id and call.get("id") and not piece.get("arguments"))
    return bool(call_id or piece.get("arguments")) and _is_object(arguments)


def _function(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function, custom = call.get("function"), call.get("custom")
    if isinstance(function, Mapping):
        return function
    return {"name": custom.get("name"), "arguments": custom.get("input", ())} if isinstance(custom, Mapping) else {}


def _id(value: Mapping[str, Any]) -> str:
    identifier = value.get("id")
    return str(identifier) if isinstance(identifier, str | int) else ""


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.decode(text.encode("utf-8", "surrogatepass")), dict)
    except ValueError:
        return False


def _as_call(members: dict[str, Any]) -> dict[str, Any]:
    """A tool call as in a message: with a `type`, and without the `index` it had in the stream."""
    members = {"type": "function", **members}
    members.pop("index", None)
    return members
