"""What is read of one chunk, whatever its shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from quart_openai_sse.errors import UpstreamGarbled
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.upstream_errors import stream_error

DONE = b"[DONE]"


class ParsedChoice(msgspec.Struct, gc=False):
    """A choice of a chunk."""

    index: int = 0
    # Azure's filter chunks have none; a server that ignores `stream` has the whole message.
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None


class ParsedChunk(msgspec.Struct, gc=False):
    """The members of a chunk that say something about its stream."""

    choices: list[ParsedChoice]
    usage: dict[str, Any] | None = None
    error: Any = None


def parse_chunk(data: bytes) -> ParsedChunk | None:
    """What the data of one event says of its stream; `None` for `[DONE]`.

    Raises `UpstreamGarbled` for data that is no chunk, and the upstream's own error for an error object.
    """
    try:
        chunk = _decode(data)
        # The decoder does not check the text of members that it skips.
        if not chunk.error and (data.isascii() or data.decode()):
            return chunk
    except (ValueError, RecursionError):
        pass
    return _parse_odd(data)


_decode = msgspec.json.Decoder(ParsedChunk).decode


def _parse_odd(data: bytes) -> ParsedChunk | None:
    """A chunk whose members do not have the types that OpenAI documents, as far as it can be understood."""
    if data.strip() == DONE:
        return None
    try:
        chunk = json.decode(data)
    except ValueError:
        raise UpstreamGarbled("The upstream sent an event that is not JSON.") from None
    if not isinstance(chunk, dict):
        raise UpstreamGarbled("The upstream sent an event that is not a JSON object.")
    if (failure := stream_error(chunk)) is not None:
        raise failure
    choices, usage = chunk.get("choices"), chunk.get("usage")
    listed = [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []
    return ParsedChunk([_parsed_choice(each) for each in listed], usage if isinstance(usage, dict) else None)


def decode_chunk(data: bytes) -> dict[str, Any]:
    """The whole of a chunk that was fed. Raises `UpstreamGarbled` for numbers that nothing here can hold."""
    try:
        chunk: dict[str, Any] = json.decode(data)
    except ValueError:
        raise UpstreamGarbled("The upstream sent a chunk that cannot be read.") from None
    return chunk


def _parsed_choice(choice: dict[str, Any]) -> ParsedChoice:
    delta, finish_reason = choice.get("delta"), choice.get("finish_reason")
    return ParsedChoice(
        find_index(choice) or 0,
        delta if isinstance(delta, dict) else None,
        finish_reason if isinstance(finish_reason, str) else None,
    )


def find_index(value: Mapping[str, Any]) -> int | None:
    """The place of a choice, or of a tool call, where it says so."""
    index = value.get("index")
    return index if type(index) is int else None  # True is an int to Python, and not to JSON


def chunk_text(data: bytes, members: tuple[str, ...] = ("content", "refusal")) -> str:
    """What the first choice of a chunk says in words: its content, or its refusal; the first of *members*."""
    for choice in _choices(data):
        if isinstance(choice, dict) and (choice.get("index") or 0) == 0:
            delta = choice.get("delta") or choice.get("message")
            said = delta if isinstance(delta, dict) else {}
            texts = (said.get(member) for member in members)
            return next((text for text in texts if isinstance(text, str) and text), "")
    return ""


def _choices(data: bytes) -> list[Any]:
    """A chunk's choices. What is odd has none: a reader shows what it can."""
    try:
        chunk = json.decode(data)
    except ValueError:
        return []
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    return choices if isinstance(choices, list) else []


def whole_answer(data: bytes) -> bool:
    """Whether an entry is an answer in one piece rather than a chunk."""
    choices = json.decode(data).get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, dict) and "delta" not in first
