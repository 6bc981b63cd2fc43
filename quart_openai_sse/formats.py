"""How a reader's client is spoken to: OpenAI's wire, and `text` for pages and EventSource."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from quart_openai_sse.entries import END_ID, Batch, End, Entry
from quart_openai_sse.errors import InvalidRequest, OpenAISSEError, StreamStopped, Translate, english
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import chunk_text
from quart_openai_sse.protocol.sse import encode_all, encode_data

RESERVED_EVENTS = frozenset({"", "message", "delta", "completed", "failed", "stopped", "error", "open"})
"""Names an app event can't have: ours, and those at which EventSource's own listeners fire."""


class Format(Protocol):
    """Turns what a reader finds in the log into bytes for its client."""

    replays: bool
    """Whether it has state, so that a reader always starts from the first entry."""

    def encode(self, batch: Batch, *, ids: bool) -> bytes:
        """The batch's entries; one event per entry at most, with `id` lines if *ids*."""
        ...

    def end(self, end: End, *, ids: bool) -> bytes:
        """The last event of a stream that ended so."""
        ...


class OpenAIFormat:
    """OpenAI's Chat Completions stream: each chunk's bytes as they came, then `[DONE]` or an error object."""

    replays = False

    def __init__(self, *, include_usage: bool = False, translate: Translate = english) -> None:
        self._include_usage = include_usage
        self._translate = translate

    def encode(self, batch: Batch, *, ids: bool) -> bytes:
        """The chunks; app events do not exist on OpenAI's wire."""
        if len(batch.entries) == 1 and not ids:  # as it is with most of them
            [entry] = batch.entries
            if not (entry.event or entry.usage):
                return encode_data(entry.data)
        usage = self._include_usage
        if not ids:
            return encode_all([each.data for each in batch.entries if not each.event and (usage or not each.usage)])
        return b"".join(
            _id(number, ids) + encode_data(each.data)
            for number, each in enumerate(batch.entries, batch.first_id)
            if not each.event and (usage or not each.usage)
        )

    def end(self, end: End, *, ids: bool) -> bytes:
        """`[DONE]` for a completed stream only: SDKs take anything that just ends for complete."""
        error = end_error(end)
        return _id(END_ID, ids) + encode_data(b"[DONE]" if error is None else json.encode(error.body(self._translate)))


class TextFormat:
    """`event: delta` with `{"text", "t"}`, app events under their names, and `completed`, `failed` or `stopped`."""

    replays = False

    def __init__(self, *, translate: Translate = english) -> None:
        self._translate = translate

    def encode(self, batch: Batch, *, ids: bool) -> bytes:
        """The text of the first choice, and app events."""
        return b"".join(self._entry(number, entry, ids) for number, entry in enumerate(batch.entries, batch.first_id))

    def end(self, end: End, *, ids: bool) -> bytes:
        """The one last event; never one named `error`, at which EventSource's own listener would fire."""
        data = json.encode(end_data(end, self._translate))
        return b"event: " + end.outcome.encode() + b"\n" + _id(END_ID, ids) + encode_data(data)

    def _entry(self, number: int, entry: Entry, ids: bool) -> bytes:
        if entry.event:
            return b"event: " + entry.event.encode() + b"\n" + _id(number, ids) + encode_data(entry.data)
        text = chunk_text(entry.data)
        if not text:
            return b""
        data = json.encode({"text": text, "t": round(entry.t, 3)})
        return b"event: delta\n" + _id(number, ids) + encode_data(data)


FORMATS: Mapping[str, Callable[..., Format]] = {"openai": OpenAIFormat, "text": TextFormat}
"""By name: what makes one, given `translate`."""


def create_format(name: str, *, include_usage: bool = False, translate: Translate = english) -> Format:
    """The format of that name. Raises `InvalidRequest` for an unknown one."""
    if name == "openai":
        return OpenAIFormat(include_usage=include_usage, translate=translate)
    if name not in FORMATS:
        raise InvalidRequest(f"format must be one of {', '.join(sorted(FORMATS))}.", param="format")
    return FORMATS[name](translate=translate)


def end_error(end: End) -> OpenAISSEError | None:
    """What a reader is told of an end that is not `completed`."""
    if end.outcome == "completed":
        return None
    if end.outcome == "stopped":
        return StreamStopped(f"The stream was stopped: {end.reason}.")
    return end.error or OpenAISSEError()


def end_data(end: End, translate: Translate = english) -> Mapping[str, Any]:
    """What the last event says, under the outcome's name: `{finish_reason, usage}`, `{error}` or `{reason}`."""
    if end.outcome == "completed":
        return {"finish_reason": end.finish_reasons.get(0), "usage": end.usage}
    return {"reason": end.reason} if end.outcome == "stopped" else (end.error or OpenAISSEError()).body(translate)


def _id(value: int | str, ids: bool) -> bytes:
    return f"id: {value}\n".encode() if ids else b""
