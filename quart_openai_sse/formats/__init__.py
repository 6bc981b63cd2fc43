"""The wire format of a response: the protocol, and how each format describes the end of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from quart_openai_sse.errors import OpenAISSEError, StreamStopped, Translate, english
from quart_openai_sse.logs.entries import Batch, End

__all__ = ["Format"]


class Format(Protocol):
    """Encodes the entries of a stream as bytes for one client."""

    replays: bool
    """Whether the format keeps state, so that a reader must start at the first entry."""

    def encode(self, batch: Batch, *, ids: bool) -> bytes:
        """The entries of *batch*, at most one event per entry; events have `id` lines if *ids* is true."""
        ...

    def end(self, end: End, *, ids: bool) -> bytes:
        """The last event of a stream that ended as *end* says; it has an `id` line if *ids* is true."""
        ...


def end_error(end: End) -> OpenAISSEError | None:
    """The error for the reader of a stream that failed or was stopped; `None` for one that completed."""
    if end.outcome == "completed":
        return None
    if end.outcome == "stopped":
        return StreamStopped(f"The stream was stopped: {end.reason}.")
    return OpenAISSEError() if end.error is None else end.error.exception()


def end_data(end: End, translate: Translate = english) -> Mapping[str, Any]:
    """The data of a last event that is named after the outcome: `{finish_reason, usage}`, `{error}` or `{reason}`."""
    if end.outcome == "completed":
        return {"finish_reason": end.finish_reasons.get(0), "usage": end.usage}
    if end.outcome == "stopped":
        return {"reason": end.reason}
    return (OpenAISSEError() if end.error is None else end.error.exception()).body(translate)
