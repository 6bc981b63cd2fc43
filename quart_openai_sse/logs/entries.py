"""The contents of a stream log: what it knows of a stream, its entries, the batches of a reader, and the end."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import msgspec

from quart_openai_sse.errors import ErrorValue, InvalidLastEventID, LogUnavailable, OpenAISSEError, StreamStopped

Outcome = Literal["completed", "failed", "stopped"]

END_ID = "end"
"""The id of a stream's end. It is not a number: after a crash a log may hold fewer entries than a reader has had."""


class Kind(Enum):
    """What an entry is."""

    CHUNK = "a chunk's bytes as the upstream sent them"
    MESSAGE = "such a chunk, whose `message` is read, because no delta came before it"
    ANSWER = "an upstream's whole answer, which was not streamed"
    EVENT = "an app event's data as JSON"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry of a stream."""

    data: bytes
    t: float = 0.0
    """Seconds since the stream began."""
    usage: bool = False
    """Whether it is a chunk with usage only, which a client that did not ask for usage does not get."""
    kind: Kind = Kind.CHUNK
    name: str = ""
    """The app event's name."""

    @property
    def whole(self) -> bool:
        """Whether its text is in a `message` instead of deltas."""
        return self.kind is Kind.ANSWER or self.kind is Kind.MESSAGE


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a log knows of a stream besides its entries."""

    id: str
    owner: str = ""
    """The key of the principal that started it, by which `StreamLog.find` finds it; "" for anonymous callers."""
    thread: str = ""
    model: str = ""
    """The model that the request named."""
    created: float = 0.0
    """When it started, in Unix time."""
    n: int = 1
    """How many choices the request asked for."""
    echo: bytes = b""
    """A wire format's own bytes, at most 64 KiB: the part of the request that it must repeat to every reader."""


@dataclass(frozen=True, slots=True)
class End:
    """How a stream ended, as a plain value: the same in the log, on the record and on the wire."""

    outcome: Outcome
    reason: str = ""
    error: ErrorValue | None = None
    finish_reasons: Mapping[int, str] = field(default_factory=dict)
    usage: Mapping[str, Any] | None = None

    def exception(self) -> OpenAISSEError | None:
        """A new exception for a reader of a stream that failed or was stopped; `None` for one that completed."""
        if self.outcome == "completed":
            return None
        if self.outcome == "stopped":
            return StreamStopped(f"The stream was stopped: {self.reason}.")
        return OpenAISSEError() if self.error is None else self.error.exception()


LOST = End("failed", "log_unavailable", ErrorValue.of(LogUnavailable("The stream log lost the stream's end.")))
"""The end for a reader whose iteration ended without one."""


class Batch(msgspec.Struct, frozen=True):
    """Entries with dense ids, and the end if it follows them. Without either: a heartbeat."""

    first: int
    """The place of the first entry in its stream, from 1."""
    entries: Sequence[Entry]
    end: End | None = None
    epoch: int = 1
    """How many producers the stream has had, this one included. A batch never holds entries of two."""
    encoded: dict[Hashable, bytes] | None = None
    """The bytes of the entries by `Format.sharing`, if the batch is given to several readers."""

    def id(self, place: int) -> str:
        """The event ID of the entry at *place* in the stream: the place; after the first epoch with the epoch."""
        return str(place) if self.epoch == 1 else f"{self.epoch}.{place}"


def parse_place(after: str, *, last: int) -> int:
    """The place of the entry whose id is *after*, in a stream that had one producer and has *last* entries.

    0 for "". Raises `InvalidLastEventID`. For an id that `Batch.id` has made; `END_ID` is no place.
    """
    if after and (not _PLACE.fullmatch(after) or int(after) > last):
        raise InvalidLastEventID("The last event ID is not a place in this stream.")
    return int(after or 0)


_PLACE = re.compile(r"[1-9][0-9]{0,15}")

RESERVED_EVENTS = frozenset(
    {"", "message", "delta", "reasoning", "details", "completed", "failed", "stopped", "error", "open"}
)
"""Names that an app event cannot have: the formats' own, and those that trigger EventSource's own listeners."""
