"""The items that a model or a transform yields, as chunks and events."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from quart_openai_sse.errors import UpstreamTruncated
from quart_openai_sse.producers.calls import CallChunk
from quart_openai_sse.producers.chat import Event
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import finish_of, has_output
from quart_openai_sse.protocol.upstream_errors import failure_of, reported_error


class InvalidItem(Exception):
    """An item that a model cannot yield. The message is for the app's developers, and not for callers."""


def finish(reason: str | Enum | None, usage: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The last item of a model whose library says why its answer ended: a chunk with the finish reason and the usage.

    *reason* may be a member of an `Enum`. Raises `UpstreamTruncated` if there is no reason: most libraries return a cut
    answer without an error, and without a reason. Raises `TypeError` if it is not a string.
    """
    if isinstance(reason, Enum):
        reason = reason.value
    if not isinstance(reason, str | None):
        raise TypeError(f"A finish reason must be a string, not {type(reason).__name__}.")
    if not (reason := finish_of(reason)):
        raise UpstreamTruncated("The answer ended without a reason.")
    chunk: dict[str, Any] = {"choices": [new_choice(0, {}, reason)]}
    return chunk if usage is None else {**chunk, "usage": dict(usage)}


def normalize(item: Any) -> Event | Mapping[str, Any] | None:
    """The event or chunk for an item that a model or a transform yielded; `None` for `None`, which is nothing.

    Raises `InvalidItem` for any other item. A chunk may be one that reports an error.
    """
    if type(item) is CallChunk or item is None:
        return item
    if isinstance(item, Event):
        return Event(item.name, _plain(item.data))
    if isinstance(item, str):
        return {"choices": [new_choice(0, {"content": str.__str__(item)})]}
    chunk = item if isinstance(item, Mapping) else _dumped(item)
    if reported_error(chunk) is not None:
        return chunk
    if chunk.get("choices", ()) is None:  # as some servers write it in the chunk with the usage
        chunk = {**chunk, "choices": []}
    if callable(dump := getattr(chunk.get("usage"), "model_dump", None)):
        chunk = {**chunk, "usage": dump(mode="json", exclude_unset=True)}
    if not _is_chunk(chunk):
        raise InvalidItem(f"A model cannot yield this {type(item).__name__}: it has no choices with a delta.")
    return chunk


def transformed(item: Any) -> Event | Mapping[str, Any] | None:
    """The same for an item of a transform. Raises the error that a chunk reports, too."""
    normal = normalize(item)
    if normal is not None and not isinstance(normal, Event) and (error := reported_error(normal)) is not None:
        raise failure_of(error)
    return normal


def new_choice(index: int, delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """A choice of a chunk."""
    return {"index": index, "delta": delta, "finish_reason": finish_reason}


def is_output(item: Event | Mapping[str, Any]) -> bool:
    """Whether *item* is an event, or a chunk with output."""
    return isinstance(item, Event) or any(
        finish_of(choice.get("finish_reason")) or has_output(choice.get("delta") or {}) for choice in item["choices"]
    )


def is_answer(item: Event | Mapping[str, Any]) -> bool:
    """Whether *item* is a part of an answer, or the reason why an answer may be empty: an event, output, a reason."""
    if isinstance(item, Event):
        return True
    return any(
        finish_of(choice.get("finish_reason")) in _TELLING or has_output(choice.get("delta") or {})
        for choice in item["choices"]
    )


_TELLING = frozenset({"length", "content_filter"})
"""Reasons with which an answer may be empty: all tokens went into its reasoning, or a filter kept it back."""


def encode(value: Any) -> bytes:
    """*value* as JSON, with Pydantic's objects and dataclasses in it. Raises `InvalidItem` if JSON cannot hold it."""
    try:
        return json.encode(value, default=_as_json)
    except (TypeError, ValueError) as error:
        raise InvalidItem(f"A model yielded a value that JSON cannot hold: {error}.") from error


def _plain(value: Any) -> Any:
    """*value* as `encode` writes it, in plain objects."""
    if value is None or type(value) in (str, int, bool):
        return value
    return json.decode(encode(value))


def _as_json(value: Any) -> Any:
    """What JSON holds in place of an object that it does not know. Raises `TypeError` for other objects."""
    if isinstance(value, str):  # such as Markup, which a template escapes
        return str.__str__(value)
    if isinstance(value, Mapping):
        return dict(value)
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")


def _is_chunk(chunk: Mapping[str, Any]) -> bool:
    choices = chunk.get("choices")
    return isinstance(choices, list) and all(
        isinstance(choice, Mapping)
        and isinstance(choice.get("delta"), Mapping | None)
        and isinstance(choice.get("message"), Mapping | None)
        for choice in choices
    )


def _dumped(item: Any) -> Mapping[str, Any]:
    """A chunk object of the OpenAI SDK, or of another with Pydantic models."""
    dump = getattr(item, "model_dump", None)
    dumped = dump(mode="json", exclude_unset=True) if callable(dump) else None
    if not isinstance(dumped, Mapping):
        raise InvalidItem(f"A model cannot yield {type(item).__name__}: only text, chunks and events.")
    return dumped
