"""The `text` format, for pages that use EventSource."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from quart_openai_sse.formats import Reading, SSEFormat, chunk_of, end_data
from quart_openai_sse.logs.entries import END_ID, Batch, End, Entry, Kind
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import (
    delta_of,
    details_of,
    first_choice,
    reasoning_of_delta,
    refusal_of_delta,
    text_of_delta,
)
from quart_openai_sse.protocol.sse import encode_data, id_line

_EVENT = Kind.EVENT


class TextFormat(SSEFormat):
    """The first choice as events: `delta`, `reasoning`, `details`, the app's own, and an end.

    `delta` has `{"text", "t"}`, with `"refusal": true` for the text of a refusal; `reasoning` has the same members.
    `details` has what came besides words, such as `{"citations": […], "t"}`, when it comes or changes. The last event
    is `completed`, `failed` or `stopped`.
    """

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading)
        self._ids = reading.ids
        self._n = reading.about.n
        self._told: dict[str, Any] = {}
        """The details that this response has sent."""
        self.sharing: Hashable | None = reading.ids

    def encode(self, batch: Batch) -> bytes:
        """What the first choice says, with its time in seconds since the start, and the app events."""
        return b"".join([self._entry(batch.id(place), entry) for place, entry in enumerate(batch.entries, batch.first)])

    def end(self, end: End) -> bytes:
        """The last event, which is never named `error`: EventSource would call the page's error listener."""
        data = json.encode(end_data(end, self.reading.translate))
        return b"event: " + end.outcome.encode() + b"\n" + id_line(END_ID, self._ids) + encode_data(data)

    def _entry(self, event_id: str, entry: Entry) -> bytes:
        """The events of one entry, the last of them with its id."""
        if entry.kind is _EVENT:
            return b"event: " + entry.name.encode() + b"\n" + id_line(event_id, self._ids) + encode_data(entry.data)
        chunk = chunk_of(entry.data)
        choice = first_choice(chunk, n=self._n) or {}
        delta, t = delta_of(choice, whole=entry.whole), round(entry.t, 3)
        details = self._news(details_of(chunk, choice, delta))
        if len(delta) == 1 and not details and isinstance(text := delta.get("content"), str):  # as most deltas
            if not text:
                return b""
            data = encode_data(json.encode({"text": text, "t": t}))
            return b"event: delta\n" + id_line(event_id, self._ids) + data
        events: list[bytes] = []
        if reasoning := reasoning_of_delta(delta):
            events += (b"event: reasoning\n", encode_data(json.encode({"text": reasoning, "t": t})))
        if text := text_of_delta(delta):
            events += (b"event: delta\n", encode_data(json.encode({"text": text, "t": t})))
        if refusal := refusal_of_delta(delta):
            events += (b"event: delta\n", encode_data(json.encode({"text": refusal, "t": t, "refusal": True})))
        if details:
            events += (b"event: details\n", encode_data(json.encode({**details, "t": t})))
        if events:
            events.insert(-1, id_line(event_id, self._ids))
        return b"".join(events)

    def _news(self, details: Mapping[str, Any]) -> dict[str, Any]:
        """The *details* that this response has not sent yet: Perplexity sends all citations with every chunk."""
        if not details:
            return {}
        news = {member: value for member, value in details.items() if self._told.get(member) != value}
        if news:
            self._told |= news
            # From now on, what this response sends depends on what it has sent.
            self.sharing = None
        return news
