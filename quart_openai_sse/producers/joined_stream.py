"""One stream of all that a model yields, of its own and of other streams."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from quart_openai_sse.errors import ModelFailed, UpstreamTruncated
from quart_openai_sse.logs.entries import Entry, Kind
from quart_openai_sse.producers.calls import Call
from quart_openai_sse.producers.chat import Event
from quart_openai_sse.producers.items import encode, new_choice
from quart_openai_sse.protocol.assembly import add_usage
from quart_openai_sse.protocol.completeness import Completion, Signal


class JoinedStream:
    """Makes the entries of one stream, which has one id, one role, one finish and the sum of all usage.

    *calls* are the requests upstream of the model. With *relays* the first of them is the stream itself.
    """

    def __init__(
        self, completion: Completion, *, stream_id: str, model: str, calls: Sequence[Call], relays: bool
    ) -> None:
        self._completion = completion
        self._calls = calls
        self._relays = relays
        self._head = {
            "id": f"chatcmpl-{stream_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._roles: set[int] = set()
        self._finish_reasons: dict[int, str] = {}
        self._usage: dict[str, Mapping[str, Any]] = {}  # of foreign chunks, by their id
        self._unfinished: set[tuple[str, int]] = set()  # choices of foreign streams

    def entries(self, item: Event | Mapping[str, Any], t: float) -> list[Entry]:
        """The entries for an event or a chunk."""
        if isinstance(item, Event):
            return [Entry(encode(item.data), t, kind=Kind.EVENT, name=item.name)]
        return self._chunk(item, t)

    def _chunk(self, chunk: Mapping[str, Any], t: float) -> list[Entry]:
        """The entries for a chunk: with this stream's id, without the chunk's own role, finish and usage."""
        origin = str(chunk.get("id") or "")
        foreign = not any(origin in call.ids for call in self._calls)
        if foreign and isinstance(usage := chunk.get("usage"), Mapping):
            self._usage[origin] = usage
        entries, choices = [], []
        for choice in chunk["choices"]:
            index = choice.get("index") or 0
            delta = {name: value for name, value in (choice.get("delta") or {}).items() if name != "role"}
            if any(delta.values()):
                if index not in self._roles:
                    self._roles.add(index)
                    entries.append(self._entry([new_choice(index, {"role": "assistant", "content": ""})], t))
                self._finish_reasons.pop(index, None)
                if foreign and origin:
                    self._unfinished.add((origin, index))
                choices.append({**choice, "index": index, "delta": delta, "finish_reason": None})
            if choice.get("finish_reason"):
                self._finish_reasons[index] = choice["finish_reason"]
                self._unfinished.discard((origin, index))
        if choices:
            others = {name: value for name, value in chunk.items() if name not in ("usage", "error")}
            entries.append(self._entry(choices, t, others))
        return entries

    def finish(self, t: float, *, exhausted: bool) -> list[Entry]:
        """The one finish of each choice, and the usage of all calls together."""
        if self._unfinished:
            # OpenAI's SDK does not tell a stream that was cut from one that ended.
            raise UpstreamTruncated("The model's stream of another SDK ended without its finish_reason.")
        indices = sorted(self._roles or {0})
        if not exhausted and not self._finish_reasons.keys() >= set(indices):
            raise ModelFailed("A transform ended the stream without a finish_reason, and without StreamStopped.")
        entries = []
        for index in indices:
            delta = {} if self._roles else {"role": "assistant", "content": ""}
            entries.append(self._entry([new_choice(index, delta, self._finish_reason(index))], t))
        usage: dict[str, Any] | None = None
        for each in (*self._usage.values(), *(call.usage for call in self._calls)):
            usage = add_usage(usage, each)
        if usage is not None:
            entries.append(self._entry([], t, {"usage": usage}))
        return entries

    def _finish_reason(self, index: int) -> str:
        """The reason that a chunk gave, or else, where a transform left it out, the reason that the upstream gave."""
        found = self._finish_reasons.get(index)
        if found is None and self._relays and self._calls:
            found = self._calls[0].finish_reasons.get(index)
        return found or "stop"

    def _entry(self, choices: list[dict[str, Any]], t: float, others: Mapping[str, Any] | None = None) -> Entry:
        chunk = {**(others or {}), **self._head, "choices": choices}
        data = encode(chunk)
        return Entry(data, t, self._completion.feed(data) is Signal.USAGE)
