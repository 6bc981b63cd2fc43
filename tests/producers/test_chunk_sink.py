"""An upstream's bytes as entries."""

from __future__ import annotations

from typing import Any

from quart_openai_sse.flow import Flow
from quart_openai_sse.logs.entries import Entry, Kind
from quart_openai_sse.producers.chunk_sink import ChunkSink
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.protocol.sse import encode_data


def test_a_chunk_whose_message_is_read_is_marked_and_the_next_one_is_not() -> None:
    taken: list[Entry] = []

    def take(entries: list[Entry]) -> Flow:
        taken.extend(entries)
        return Flow.MORE

    async def room() -> None: ...

    def choice(**members: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "finish_reason": None, **members}]}

    sink = ChunkSink(Completion(), take=take, room=room, max_event=1 << 20)
    sink.begin("upstream")
    chunks = [choice(message={"content": "a"}), choice(delta={"content": "b"}), choice(delta={"content": "c"})]
    for chunk in chunks:
        sink.feed(encode_data(json.encode(chunk)))
    assert [(entry.kind, json.decode(entry.data)) for entry in taken] == [
        (Kind.MESSAGE, chunks[0]),
        (Kind.CHUNK, chunks[1]),
        (Kind.CHUNK, chunks[2]),
    ]
