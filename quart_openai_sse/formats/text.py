"""The `text` format, for pages that use EventSource."""

from __future__ import annotations

from quart_openai_sse.errors import Translate, english
from quart_openai_sse.formats import end_data
from quart_openai_sse.logs.entries import END_ID, Batch, End, Entry, Kind
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import chunk_text
from quart_openai_sse.protocol.sse import encode_data, id_line


class TextFormat:
    """`event: delta` with `{"text", "t"}`, app events under their names, and `completed`, `failed` or `stopped`."""

    replays = False

    def __init__(self, *, translate: Translate = english) -> None:
        self._translate = translate

    def encode(self, batch: Batch, *, ids: bool) -> bytes:
        """The text of the first choice, with its time in seconds since the start, and the app events."""
        return b"".join(
            self._entry(batch.id(place), entry, ids) for place, entry in enumerate(batch.entries, batch.first)
        )

    def end(self, end: End, *, ids: bool) -> bytes:
        """The last event, which is never named `error`: EventSource would call the page's error listener."""
        data = json.encode(end_data(end, self._translate))
        return b"event: " + end.outcome.encode() + b"\n" + id_line(END_ID, ids) + encode_data(data)

    def _entry(self, event_id: str, entry: Entry, ids: bool) -> bytes:
        if entry.kind is Kind.EVENT:
            return b"event: " + entry.name.encode() + b"\n" + id_line(event_id, ids) + encode_data(entry.data)
        text = chunk_text(entry.data)
        if not text:
            return b""
        data = json.encode({"text": text, "t": round(entry.t, 3)})
        return b"event: delta\n" + id_line(event_id, ids) + encode_data(data)
