"""The contents of a stream log: entries, the batches of a reader, and the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from quart_openai_sse.errors import OpenAISSEError

Outcome = Literal["completed", "failed", "stopped"]

END_ID = "end"
"""The id of a stream's end. It is not a number: after a crash a log may hold fewer entries than a reader has had."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A chunk's bytes as the upstream sent them, or an app event as JSON. *t* is seconds since the stream began."""

    data: bytes
    event: str = ""
    """The app event's name; empty for a chunk."""
    t: float = 0.0
    usage: bool = False
    """Whether it is a chunk with usage only, which a client that did not ask for usage does not get."""


@dataclass(frozen=True, slots=True)
class End:
    """How a stream ended: the same value in the log, on the record and on the wire."""

    outcome: Outcome
    reason: str = ""
    error: OpenAISSEError | None = None
    finish_reasons: Mapping[int, str] = field(default_factory=dict)
    usage: Mapping[str, Any] | None = None


class Batch(msgspec.Struct, frozen=True):
    """Entries with dense ids from *first_id*, and the end if it follows them. Without either: a heartbeat."""

    first_id: int
    entries: Sequence[Entry]
    end: End | None = None


RESERVED_EVENTS = frozenset({"", "message", "delta", "completed", "failed", "stopped", "error", "open"})
"""Names that an app event cannot have: the formats' own, and those that trigger EventSource's own listeners."""
