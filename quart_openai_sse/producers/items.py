"""The items that a model or a transform yields, as chunks and events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart_openai_sse.errors import ModelFailed
from quart_openai_sse.producers.chat import Event
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import has_output
from quart_openai_sse.protocol.upstream_errors import stream_error


def normalize(item: Any) -> Event | Mapping[str, Any]:
    """The event or chunk for an item that a model or a transform yielded. Raises `ModelFailed` for any other item."""
    if isinstance(item, Event):
        return item
    if isinstance(item, str):
        return {"choices": [new_choice(0, {"content": item})]}
    chunk = item if isinstance(item, Mapping) else _dumped(item)
    if (failure := stream_error(chunk)) is not None:
        raise failure
    if not _is_chunk(chunk):
        raise ModelFailed(f"A model cannot yield this {type(item).__name__}: it has no choices with a delta.")
    return chunk


def new_choice(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """A choice of a chunk."""
    return {"index": index, "delta": delta, "finish_reason": finish_reason}


def is_output(item: Event | Mapping[str, Any]) -> bool:
    """Whether *item* is an event, or a chunk with output."""
    return isinstance(item, Event) or any(
        choice.get("finish_reason") or has_output(choice.get("delta") or {}) for choice in item["choices"]
    )


def encode(value: Any) -> bytes:
    """*value* as JSON. Raises `ModelFailed` if JSON cannot hold it."""
    try:
        return json.encode(value)
    except (TypeError, ValueError) as error:
        raise ModelFailed(f"A model yielded a value that JSON cannot hold: {error}.") from error


def _is_chunk(chunk: Mapping[str, Any]) -> bool:
    choices = chunk.get("choices")
    return isinstance(choices, list) and all(
        isinstance(choice, Mapping) and isinstance(choice.get("delta"), Mapping | None) for choice in choices
    )


def _dumped(item: Any) -> Mapping[str, Any]:
    """A chunk object of the OpenAI SDK, or of another with Pydantic models."""
    dump = getattr(item, "model_dump", None)
    dumped = dump(mode="json", exclude_unset=True) if callable(dump) else None
    if not isinstance(dumped, Mapping):
        raise ModelFailed(f"A model cannot yield {type(item).__name__}: only text, chunks and events.")
    return dumped
