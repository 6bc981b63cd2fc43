"""What happened to a stream: one record, and the events of its life."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from quart_openai_sse.logs.entries import Outcome

APP = "app"
"""`StreamRecord.upstream` of a stream that a model of the app's own produces."""


@dataclass(slots=True, kw_only=True)
class StreamRecord:
    """One stream, from start to end. Times are seconds, `bytes` are of chunks as the upstream sent them."""

    id: str
    """As in `GET /streams/<id>`."""
    thread: str = ""
    """The name it was started with, by which it is found while it runs."""
    principal: str = ""
    """Who started it: `realm:id`."""
    model: str = ""
    """The model that was asked for."""
    upstream: str = ""
    """The host that answered, or `app` for a model of the app's own."""
    trace_id: str = ""
    """That of the request that started it."""
    outcome: Outcome | Literal[""] = ""
    """`completed`, `failed` or `stopped`; empty while the stream runs."""
    reason: str = ""
    """Why it failed (an error's code) or was stopped."""
    status: int = 200
    """The HTTP status of the failure, 200 otherwise."""
    finish_reasons: dict[int, str] = field(default_factory=dict)
    """Why each choice ended, by its index, as the upstream said."""
    usage: Mapping[str, Any] | None = None
    """What the upstream counted, if it said so."""
    chunks: int = 0
    """How many came."""
    bytes: int = 0
    """Their size, as the upstream sent them."""
    time_to_first_output: float | None = None
    """Until the first chunk that says something, or the first event of the app's."""
    duration: float = 0.0
    """From the start to the end, `on_end` included."""
    longest_gap: float = 0.0
    """The longest silence after the first output."""
    attempts: int = 0
    """Requests sent upstream."""
    failures: tuple[str, ...] = ()
    """Of those that failed before any output, each one's upstream and error code."""
    readers: int = 0
    """Responses that read it while it ran, and the app's own reading."""
    resumes: int = 0
    """Readers that did not begin at the beginning."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What `ai.start` was given."""


EventKind = Literal["started", "first_chunk", "retried", "ended"]


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """Something in a stream's life: *record* is as it was at that moment."""

    kind: EventKind
    record: StreamRecord


Observer = Callable[[StreamEvent], Awaitable[None] | None]
"""A function or a coroutine function. Nothing waits for it; what it raises is logged."""
