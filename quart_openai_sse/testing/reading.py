"""Reads a streamed response, in the OpenAI or the `text` format."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass, field
from typing import Any

from quart_openai_sse.formats import first_delta
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.protocol.chunks import merged, refusal_of_delta, text_of_delta
from quart_openai_sse.protocol.sse import ServerSentEvent, SSEDecoder


@dataclass(frozen=True)
class ReadStream:
    """A streamed response, read to its end or to the point where it was cut off."""

    events: list[ServerSentEvent]
    """All events, in either format."""
    chunks: list[dict[str, Any]] = field(default_factory=list)
    """The chunks, in the OpenAI format."""
    text: str = ""
    """The text of the first choice, or its refusal, in either format."""
    ids: list[str] = field(default_factory=list)
    """The ids of the events that have one."""
    outcome: str = "cut"
    """`completed`, `failed` or `stopped`; `cut` if the response has no end."""
    error: dict[str, Any] | None = None
    """The error object of a failed stream, and in the OpenAI format of a stopped one."""
    reasoning: str = ""
    """The first choice's reasoning, in either format."""
    details: dict[str, Any] = field(default_factory=dict)
    """What came besides words, such as citations, by the members' names; in either format."""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """The first choice's tool calls, assembled as in a message, in the OpenAI format."""
    finish_reason: str | None = None
    """The first choice's `finish_reason`."""
    usage: dict[str, Any] | None = None
    """The usage; in the OpenAI format only if the client requested it (`stream_options.include_usage`)."""

    @property
    def last_event_id(self) -> str:
        """The last event's id, to resume from; empty if no event had an id."""
        return self.ids[-1] if self.ids else ""


async def read(body: bytes | AsyncIterable[bytes]) -> ReadStream:
    """Reads a streamed response: its bytes, or an iterable of them (`response.aiter_raw()`)."""
    decoder = SSEDecoder()
    events: list[ServerSentEvent] = []
    if isinstance(body, bytes):
        events = decoder.feed(body)
    else:
        async for data in body:
            events += decoder.feed(data)
    return _read_stream(events)


def _read_stream(events: list[ServerSentEvent]) -> ReadStream:
    text, reasoning, outcome, error = "", "", "cut", None
    chunks: list[dict[str, Any]] = []
    assembly = Assembly(n=2)  # by the index of each choice: it is not known how many were asked for
    details: dict[str, Any] = {}
    end: dict[str, Any] = {}
    for event in events:
        if event.data == "[DONE]":
            outcome = "completed"
            continue
        data = json.decode(event.data.encode())
        if event.event == "delta":
            text += data["text"]
        elif event.event == "reasoning":
            reasoning += data["text"]
        elif event.event == "details":
            details |= {name: merged(details.get(name), value) for name, value in data.items() if name != "t"}
        elif event.event in ("completed", "failed", "stopped"):
            outcome, error, end = event.event, data.get("error"), data
        elif event.event == "message" and "error" in data:
            error = data["error"]
            outcome = "stopped" if error["code"] == "stopped" else "failed"
        elif event.event == "message":
            chunks.append(data)
            delta = first_delta(data, whole=False, n=2)
            text += text_of_delta(delta) + refusal_of_delta(delta)
            assembly.add_chunk(data)
    message = assembly.first_message() or {}
    return ReadStream(
        events,
        chunks,
        text,
        [event.id for event in events if event.id],
        outcome,
        error,
        reasoning=reasoning or assembly.reasoning,
        details=details or assembly.details,
        tool_calls=message.get("tool_calls") or [],
        finish_reason=assembly.finish_reasons.get(0) or end.get("finish_reason"),
        usage=assembly.usage or end.get("usage"),
    )
