"""Observers: the record of a stream, and the events that are reported of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from quart_openai_sse.logs.entries import Outcome

APP = "app"
"""`StreamRecord.upstream` of a stream that a model of the app produces."""


@dataclass(slots=True, kw_only=True)
class StreamRecord:
    """One stream, from start to end. Times are in seconds."""

    id: str
    """The stream's id, as in `GET /streams/<id>`."""
    thread: str = ""
    """The name by which the running stream can be found, or ""."""
    principal: str = ""
    """The principal that started it, as `realm:id`."""
    model: str = ""
    """The model that the request named."""
    upstream: str = ""
    """The name of the upstream that answered, by default its host; `app` for a model of the app."""
    trace_id: str = ""
    """The trace id of the request that started it."""
    outcome: Outcome | Literal[""] = ""
    """`completed`, `failed` or `stopped`; empty while the stream runs."""
    reason: str = ""
    """The code of the error with which it failed, or why it was stopped."""
    status: int = 200
    """The HTTP status of the failure, 200 otherwise."""
    finish_reasons: dict[int, str] = field(default_factory=dict)
    """The upstream's `finish_reason` of each choice, by the choice's index."""
    usage: Mapping[str, Any] | None = None
    """The upstream's `usage`, if it sent one."""
    tokens_charged: int | None = None
    """The tokens that its principal was charged; `None` while it runs, and without `tokens_per_principal`."""
    chunks: int = 0
    """The number of chunks."""
    bytes: int = 0
    """The size of the chunks as the upstream sent them."""
    time_to_first_output: float | None = None
    """From the start to the first chunk with output, or to the first app event."""
    duration: float = 0.0
    """From the start to the end, `on_end` included."""
    longest_gap: float = 0.0
    """The longest silence after the first output."""
    attempts: int = 0
    """Requests sent upstream."""
    failures: tuple[str, ...] = ()
    """For each request that failed before any output, `upstream: code of the error`."""
    readers: int = 0
    """Responses that read it while it ran, and readers within the app."""
    resumes: int = 0
    """Readers that did not start at the first entry."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The `metadata` that was passed to `ai.start`."""


EventKind = Literal["started", "first_chunk", "retried", "ended"]


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event in the life of a stream, with the *record* as it was at that moment."""

    kind: EventKind
    record: StreamRecord


Observer = Callable[[StreamEvent], Awaitable[None] | None]
"""A coroutine function, which runs on the event loop, or any other function, which runs in a thread.

It is called for the events of a stream one after the other, and for several streams at once. Nothing waits for it; an
exception that it raises is logged. It may take `observe_timeout` seconds for an event. If 1000 events are pending for
it, further events are dropped, and a warning says how many."""
