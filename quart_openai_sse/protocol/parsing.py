"""One event of an upstream's stream, parsed: what counts for whether the stream is complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from quart_openai_sse.errors import UpstreamGarbled
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import find_index
from quart_openai_sse.protocol.upstream_errors import reported_error

DONE = b"[DONE]"
"""The data of the event that ends a stream."""


# gc=False makes parse_chunk 5 % faster. These objects refer to decoded JSON only, so they are never part of a cycle.
class ParsedChunk(msgspec.Struct, gc=False):
    """The members of a chunk that say something about its stream."""

    choices: list[ParsedChoice]
    usage: dict[str, Any] | None = None
    error: Any = None
    """The error that is reported instead of, or beside, the choices."""
    x_groq: Any = None
    """Groq's own member, which may hold the usage."""
    base_resp: Any = None
    """MiniMax's own member, which may report an error."""


class ParsedChoice(msgspec.Struct, gc=False):
    """A choice of a chunk."""

    index: int = 0
    # Missing in Azure's content filter chunks, and in the answer of a server that ignores `stream`.
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None
    message: Any = None
    text: Any = None
    usage: Any = None
    error: Any = None


BLANK = ParsedChunk([])
"""The chunk of an event whose data is empty, or white space."""


def parse_chunk(data: bytes) -> ParsedChunk | None:
    """The chunk that is the *data* of one event; `None` for `[DONE]`, and `BLANK` for an event without data.

    Raises `UpstreamGarbled` for data that is neither a JSON object nor an error.
    """
    try:
        chunk = _decode(data)
        # The decoder does not check the UTF-8 of members that it skips.
        if data.isascii() or data.decode():
            return chunk
    except (ValueError, RecursionError):
        pass
    return _parse_odd(data)


_decode = msgspec.json.Decoder(ParsedChunk).decode


def parse_object(chunk: Mapping[str, Any]) -> ParsedChunk:
    """The same for a chunk that is decoded already: a member of another type than documented counts as missing."""
    choices, usage = chunk.get("choices"), chunk.get("usage")
    return ParsedChunk(
        [_parse_choice(each) for each in choices if isinstance(each, Mapping)] if isinstance(choices, list) else [],
        usage if isinstance(usage, dict) else None,
        reported_error(chunk),
        chunk.get("x_groq"),
    )


def decode_chunk(data: bytes) -> dict[str, Any]:
    """The JSON object of a chunk that `parse_chunk` accepts. Raises `UpstreamGarbled` for a number beyond a float."""
    try:
        chunk: dict[str, Any] = json.decode(data)
    except ValueError:
        raise UpstreamGarbled("The upstream sent a chunk that cannot be read.") from None
    return chunk


def _parse_odd(data: bytes) -> ParsedChunk | None:
    """A chunk that reports an error, or whose members have other types than OpenAI documents."""
    text = data.strip()
    if text == DONE:
        return None
    if not text:
        return BLANK
    try:
        chunk = json.decode(data)
    except ValueError:
        raise UpstreamGarbled("The upstream sent an event that is not JSON.") from None
    if isinstance(chunk, dict):
        return parse_object(chunk)
    if (error := error_in(chunk)) is None:
        raise UpstreamGarbled("The upstream sent an event that is not a JSON object.")
    return ParsedChunk([], error=error)


def error_in(value: object) -> Any:
    """The error that a JSON value reports in place of a chunk or an answer, or `None`. A text is an error."""
    if isinstance(value, str):
        return value if value.strip() not in ("", "[DONE]") else None
    return reported_error(value)


def _parse_choice(choice: Mapping[str, Any]) -> ParsedChoice:
    delta, finish_reason = choice.get("delta"), choice.get("finish_reason")
    return ParsedChoice(
        find_index(choice) or 0,
        delta if isinstance(delta, dict) else None,
        finish_reason if isinstance(finish_reason, str) else None,
        *(choice.get(member) for member in ("message", "text", "usage", "error")),
    )
