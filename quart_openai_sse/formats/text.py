"""The `text` format, for pages that use EventSource."""

from __future__ import annotations

from quart_openai_sse.formats import Reading, SSEFormat, end_data
from quart_openai_sse.logs.entries import END_ID, Batch, End, Entry, Kind
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import chunk_text
from quart_openai_sse.protocol.sse import encode_data, id_line


class TextFormat(SSEFormat):
    """`event: delta` with `{"text", "t"}`, app events under their names, and `completed`, `failed` or `stopped`."""

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading)
        self._ids = reading.ids
        self.sharing = reading.ids

    def encode(self, batch: Batch) -> bytes:
        """The text of the first choice, with its time in seconds since the start, and the app events."""
        return b"".join(self._entry(batch.id(place), entry) for place, entry in enumerate(batch.entries, batch.first))

    def end(self, end: End) -> bytes:
        """The last event, which is never named `error`: EventSource would call the page's error listener."""
        data = json.encode(end_data(end, self.reading.translate))
        return b"event: " + end.outcome.encode() + b"\n" + id_line(END_ID, self._ids) + encode_data(data)

    def _entry(self, event_id: str, entry: Entry) -> bytes:
        if entry.kind is Kind.EVENT:
            return b"event: " + entry.name.encode() + b"\n" + id_line(event_id, self._ids) + encode_data(entry.data)
        text = chunk_text(entry.data)
        if not text:
            return b""
        data = json.encode({"text": text, "t": round(entry.t, 3)})
        return b"event: delta\n" + id_line(event_id, self._ids) + encode_data(data)
