"""The reading of a response that streams."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass, field
from typing import Any

from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.protocol.sse import ServerSentEvent, SSEDecoder


@dataclass(frozen=True)
class ReadStream:
    """A streamed response, read to its end or to where it was cut."""

    events: list[ServerSentEvent]
    """Every event, in either format."""
    chunks: list[dict[str, Any]] = field(default_factory=list)
    """The chunks of OpenAI's format."""
    text: str = ""
    """What the first choice said, in either format."""
    ids: list[str] = field(default_factory=list)
    outcome: str = "cut"
    """`completed`, `failed`, `stopped`; `cut` if it just broke off."""
    error: dict[str, Any] | None = None
    """The error object, if there was one."""
    reasoning: str = ""
    """What the first choice thought before it spoke (`reasoning_content` or `reasoning`), in OpenAI's format."""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """The tool calls of the first choice, put together as in a message, in OpenAI's format."""
    finish_reason: str | None = None
    """Why the first choice ended, by the upstream's account."""
    usage: dict[str, Any] | None = None
    """What it cost, if the client asked to be told (`stream_options.include_usage`), or in the `text` format."""

    @property
    def last_event_id(self) -> str:
        """What to resume from."""
        return self.ids[-1] if self.ids else ""


async def read(body: bytes | AsyncIterable[bytes]) -> ReadStream:
    """Reads a streamed response: its bytes, or what iterates over them (`response.aiter_raw()`)."""
    decoder = SSEDecoder()
    events: list[ServerSentEvent] = []
    if isinstance(body, bytes):
        events = decoder.feed(body)
    else:
        async for data in body:
            events += decoder.feed(data)
    return _read_stream(events)


def _read_stream(events: list[ServerSentEvent]) -> ReadStream:
    text, outcome, error = "", "cut", None
    chunks: list[dict[str, Any]] = []
    assembly = Assembly()
    told: dict[str, Any] = {}
    for event in events:
        if event.data == "[DONE]":
            outcome = "completed"
            continue
        data = json.decode(event.data.encode())
        if event.event == "delta":
            text += data["text"]
        elif event.event in ("completed", "failed", "stopped"):
            outcome, error, told = event.event, data.get("error"), data
        elif event.event == "message" and "error" in data:
            error = data["error"]
            outcome = "stopped" if error["code"] == "stopped" else "failed"
        elif event.event == "message":
            chunks.append(data)
            assembly.add_chunk(data)
            text += "".join(
                choice["delta"].get("content") or "" for choice in data["choices"] if choice.get("index", 0) == 0
            )
    ids = [event.id for event in events if event.id]
    choices: list[dict[str, Any]] = (assembly.message() or {}).get("choices", [])
    message: dict[str, Any] = next((choice["message"] for choice in choices if choice["index"] == 0), {})
    return ReadStream(
        events,
        chunks,
        text,
        ids,
        outcome,
        error,
        reasoning=message.get("reasoning_content") or message.get("reasoning") or "",
        tool_calls=message.get("tool_calls") or [],
        finish_reason=assembly.finish_reasons.get(0) or told.get("finish_reason"),
        usage=assembly.usage or told.get("usage"),
    )
