"""How a reader's client is spoken to: OpenAI's wire, and `text` for pages and EventSource."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from quart_openai_sse.errors import OpenAISSEError, StreamStopped, Translate, english
from quart_openai_sse.logs.entries import Batch, End

__all__ = ["Format"]


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
