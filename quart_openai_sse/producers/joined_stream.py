"""One stream of all that a model yields, of its own and of other streams."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from quart_openai_sse.errors import ModelFailed
from quart_openai_sse.logs.entries import Entry, Kind
from quart_openai_sse.producers.calls import Call, CountedUsage
from quart_openai_sse.producers.chat import Event
from quart_openai_sse.producers.items import encode, new_choice
from quart_openai_sse.protocol.chunks import find_index, finish_of, has_output
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.protocol.usage import Usage, add_usage, update_usage


class JoinedStream:
    """Makes the entries of one stream, which has one id, one role, one finish and the sum of all usage."""

    def __init__(self, completion: Completion, *, stream_id: str, model: str) -> None:
        self.call: Call | None = None
        """The request upstream that the stream is the answer to, if it is not a model's own."""
        self._completion = completion
        self._head = {
            "id": f"chatcmpl-{stream_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._roles: set[int] = set()
        self._finish_reasons: dict[int, str] = {}
        self.usage: dict[str, Any] | None = None
        """The usage of chunks that transforms have added, or that the model has made itself."""
        # Members of chunks without output go with the next chunk that is written.
        self._others: dict[str, Any] = {}
        self._members_of_choices: dict[int, dict[str, Any]] = {}

    def entries(self, item: Event | Mapping[str, Any], t: float) -> list[Entry]:
        """The entries for an event or a chunk. Raises `InvalidItem` for a value that JSON cannot hold."""
        if isinstance(item, Event):
            return [Entry(encode(item.data), t, kind=Kind.EVENT, name=item.name)]
        entries: list[Entry] = []
        choices = [written for choice in item["choices"] if (written := self._written(choice, entries, t))]
        usage = item.get("usage")
        if usage and type(usage) is not CountedUsage and isinstance(usage, Mapping):
            self.usage = update_usage(self.usage, usage)
        if choices:
            entries.append(self._entry(choices, t, item))
        elif not item.keys() <= _COMMON:
            self._others |= {name: value for name, value in item.items() if name not in _COMMON}
        return entries

    def _written(self, choice: Mapping[str, Any], entries: list[Entry], t: float) -> dict[str, Any] | None:
        """The choice as it is written, with output only; its role goes before it, and its reason behind all output."""
        index = find_index(choice) or 0
        delta = choice.get("delta") or {}
        if "role" in delta:
            delta = {name: value for name, value in delta.items() if name != "role"}
        if reason := finish_of(choice.get("finish_reason")):
            self._finish_reasons[index] = reason
        if not has_output(delta):
            self._keep_members(index, choice)
            return None
        if index not in self._roles:
            self._roles.add(index)
            entries.append(self._entry([new_choice(index, {"role": "assistant", "content": ""})], t))
        if not reason:
            self._finish_reasons.pop(index, None)
        kept = self._members_of_choices.pop(index, None) or {}
        return {**kept, **choice, "index": index, "delta": delta, "finish_reason": None}

    def finish(self, t: float, *, exhausted: bool, usage: Usage | None) -> list[Entry]:
        """The one finish of each choice, and the *usage* of all other streams, with that of the transforms.

        Raises `ModelFailed` if a transform has ended the stream without a reason.
        """
        indices = sorted(self._roles or {0})
        if not exhausted and not self._finish_reasons.keys() >= set(indices):
            raise ModelFailed("The app's model failed.") from ValueError(
                "A transform ended the stream without a finish_reason, and without StreamStopped."
            )
        entries = []
        for index in indices:
            delta = {} if self._roles else {"role": "assistant", "content": ""}
            choice = new_choice(index, delta, self._finish_reason(index))
            entries.append(self._entry([self._members_of_choices.pop(index, {}) | choice], t))
        if (total := add_usage(usage, self.usage)) is not None:
            entries.append(self._entry([], t, {"usage": total}))
        return entries

    def _keep_members(self, index: int, choice: Mapping[str, Any]) -> None:
        """Keeps the further members of a choice without output, such as Azure's content filter results."""
        others = {name: value for name, value in choice.items() if name not in _OF_CHOICES and value is not None}
        if others:
            self._members_of_choices.setdefault(index, {}).update(others)

    def _finish_reason(self, index: int) -> str:
        """The reason that a chunk gave, or else, where a transform left it out, the reason that the upstream gave."""
        found = self._finish_reasons.get(index)
        if found is None and self.call is not None:
            found = self.call.finish_reasons.get(index)
        return found or "stop"

    def _entry(self, choices: Sequence[Mapping[str, Any]], t: float, members: Mapping[str, Any] | None = None) -> Entry:
        """An entry with *choices* and the further *members* of the chunk that they are of."""
        chunk: dict[str, Any] = {**self._others, **(members or {}), **self._head, "choices": choices}
        if self._others:
            self._others = {}
        chunk.pop("error", None)
        if choices:
            chunk.pop("usage", None)
        data = encode(chunk)
        self._completion.feed(data)
        return Entry(data, t, not choices)


_COMMON = frozenset(
    {
        "choices",
        "created",
        "error",
        "id",
        "model",
        "object",
        "obfuscation",
        "service_tier",
        "system_fingerprint",
        "usage",
    }
)
_OF_CHOICES = frozenset({"index", "delta", "error", "finish_reason", "message", "text", "usage"})
