"""The wire format of a response: the protocol, base classes, and how a format describes the end of a stream."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Protocol

import msgspec

from quart_openai_sse.errors import OpenAISSEError, Translate, english
from quart_openai_sse.logs.entries import About, Batch, End, Entry, Kind
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import delta_of, first_choice, refusal_of_delta, text_of_delta
from quart_openai_sse.protocol.sse import HEARTBEAT

__all__ = ["BaseFormat", "Format", "Reading", "SSEFormat", "end_data", "entry_text"]


_NO_STREAM = About(id="")


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a format is created for: one response, and the stream that it reads."""

    about: About = _NO_STREAM
    """The stream. Its id is "" if there is no stream; the format then only writes refusals."""
    after: str = ""
    """The client's position in the stream, as the client sent it."""
    ids: bool = False
    """Whether the client can resume from the id of an event."""
    retry: int | None = None
    """The reconnection time in milliseconds that is sent to the client; `None`: none is sent."""
    include_usage: bool = False
    """Whether the client asked for chunks with usage only."""
    translate: Translate = english
    """Translates a sentence for people into the client's language."""


class Format(Protocol):
    """Encodes one stream for one response. A format is created for each response, with a `Reading`."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The response headers of this format. `Content-Type` must be one of them."""
        ...

    @property
    def heartbeat(self) -> bytes:
        """The bytes that are sent after `keepalive` seconds of silence; `b""`: none. Clients must ignore them."""
        ...

    @property
    def replays(self) -> bool:
        """Whether the format keeps state, so that it must be given a stream from its first entry.

        It may leave out what a client has according to `Reading.after`.
        """
        ...

    @property
    def sharing(self) -> Hashable | None:
        """Formats of one class with equal values encode a batch as the same bytes, so that it is encoded only once.

        `None`: the bytes are this response's own, for example because they depend on the batches before.
        """
        ...

    def head(self) -> bytes:
        """The bytes that are sent with the status 200, before any entry; `b""`: none."""
        ...

    def encode(self, batch: Batch) -> bytes:
        """The entries of *batch*, each as any number of events. Only the last event of an entry has its id."""
        ...

    def end(self, end: End) -> bytes:
        """The events that end the stream as *end* says. The response ends after them.

        The client must be able to tell from them whether the stream is complete. Called once, unless it raises; also
        if the response itself fails.
        """
        ...

    def refusal(self, error: OpenAISSEError) -> tuple[bytes, str]:
        """The body and the content type of the response if *error* is raised before the first byte is sent.

        Status and further headers are those of *error*.
        """
        ...


class BaseFormat:
    """What most formats have in common. A class that derives from it sets `headers`, and writes `encode` and `end`."""

    headers: Mapping[str, str]
    heartbeat: bytes = b""
    replays: bool = False
    sharing: Hashable | None = None

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def head(self) -> bytes:
        """Returns `b""`."""
        return b""

    def refusal(self, error: OpenAISSEError) -> tuple[bytes, str]:
        """OpenAI's error object, as JSON."""
        return json_refusal(error, self.reading.translate)


class SSEFormat(BaseFormat):
    """What formats of server-sent events have in common."""

    headers: Mapping[str, str] = {"Content-Type": "text/event-stream; charset=utf-8"}
    heartbeat: bytes = HEARTBEAT

    def head(self) -> bytes:
        """The reconnection time, if there is one in the `Reading`."""
        return b"" if self.reading.retry is None else b"retry: %d\n" % self.reading.retry


def json_refusal(error: OpenAISSEError, translate: Translate) -> tuple[bytes, str]:
    """An error as OpenAI's API reports it: the body and its content type."""
    return json.encode(error.body(translate)), "application/json"


def entry_text(entry: Entry, *, n: int = 1) -> str:
    """The text of the first choice in *entry*, or the refusal; "" if it has neither, or is an app event.

    *n* is how many choices were asked for: `Reading.about.n`.
    """
    if entry.kind is Kind.EVENT:
        return ""
    delta = first_delta(chunk_of(entry.data), whole=entry.whole, n=n)
    return text_of_delta(delta) + refusal_of_delta(delta)


def chunk_of(data: bytes) -> Mapping[str, Any]:
    """The JSON object in *data*, or an empty mapping if *data* is not a JSON object."""
    try:
        chunk = json.decode(data)
    except ValueError:
        return {}
    return chunk if isinstance(chunk, dict) else {}


def first_delta(chunk: Mapping[str, Any], *, whole: bool, n: int) -> Mapping[str, Any]:
    """What the first choice of *chunk* says; see `delta_of` for *whole*. Empty if there is no such choice."""
    choice = first_choice(chunk, n=n)
    return {} if choice is None else delta_of(choice, whole=whole)


def end_data(end: End, translate: Translate = english) -> Mapping[str, Any]:
    """The data of a last event that is named after the outcome: `{finish_reason, usage}`, `{error}` or `{reason}`."""
    if end.outcome == "stopped":
        return {"reason": end.reason}
    if (error := end.exception()) is None:
        return {"finish_reason": end.finish_reasons.get(0), "usage": end.usage}
    return error.body(translate)
