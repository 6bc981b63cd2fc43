"""The requests that a simulator received, and how they ended."""

from __future__ import annotations

import asyncio
import html
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Ending = Literal["running", "finished", "closed_by_peer", "closed_by_server"]

KEPT_REQUESTS = 1000


@dataclass
class RecordedRequest:
    """One request and its outcome. Times are seconds since the simulator's start."""

    number: int
    """The request's number, counted from 1."""
    path: str
    started: float
    headers: dict[str, str | bool]
    """The trace, project and idempotency headers; ``authorization`` is whether the request had that header."""
    model: str = ""
    stream: bool = False
    status: int | None = None
    """The response's status; `None` until it is sent."""
    tokens: int = 0
    """The number of tokens sent."""
    outcome: Ending = "running"
    closed: float | None = None
    """When the response was complete, or the connection was closed."""


@dataclass
class Counters:
    """The last 1,000 requests that a simulator received, and the totals of all requests."""

    requests: deque[RecordedRequest] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    totals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("requests", "running", "finished", "closed_by_peer", "closed_by_server", "tokens"), 0
        )
    )
    shutting_down: bool = False
    """Whether the simulator now cuts its connections: such requests end as ``closed_by_server``."""
    _start: float = field(default_factory=time.monotonic)
    _waiters: list[asyncio.Future[None]] = field(default_factory=list)

    def now(self) -> float:
        """The present time in seconds since the simulator's start."""
        return round(time.monotonic() - self._start, 6)

    async def until(self, condition: Callable[[], T]) -> T:
        """Waits until *condition*, called after every change, returns a true value. Use a timeout around it."""
        while not (result := condition()):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return result

    def as_json(self) -> dict[str, Any]:
        """The counters as served at ``/counters``: ``now``, ``totals``, ``requests``."""
        return {"now": self.now(), "totals": self.totals, "requests": [asdict(each) for each in self.requests]}

    def shut_down(self) -> None:
        """Sets `shutting_down`."""
        self.shutting_down = True

    def open(self, path: str, headers: dict[str, str | bool]) -> RecordedRequest:
        """Records a new request."""
        self._count(requests=1, running=1)
        recorded = RecordedRequest(self.totals["requests"], path, self.now(), headers)
        self.requests.append(recorded)
        return recorded

    def note(self, recorded: RecordedRequest, **members: Any) -> None:
        """Sets *members* of *recorded*."""
        for name, value in members.items():
            setattr(recorded, name, value)
        self._changed()

    def sent(self, recorded: RecordedRequest, tokens: int = 1) -> None:
        """Counts *tokens* that were sent."""
        recorded.tokens += tokens
        self._count(tokens=tokens)

    def close(self, recorded: RecordedRequest, *, finished: bool) -> None:
        """Ends *recorded*, unless it has ended before. *finished*: the response is complete."""
        if recorded.outcome == "running":
            cut: Ending = "closed_by_server" if self.shutting_down else "closed_by_peer"
            recorded.outcome = "finished" if finished else cut
            recorded.closed = self.now()
            self._count(running=-1, **{recorded.outcome: 1})

    def _count(self, **changes: int) -> None:
        for name, change in changes.items():
            self.totals[name] += change
        self._changed()

    def _changed(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def counters_page(counters: Counters) -> str:
    """The counters as an HTML page, which reloads itself."""
    columns = ("number", "started", "path", "model", "stream", "status", "tokens", "outcome", "closed")
    head = "".join(f"<th>{name}" for name in columns)
    rows = (
        "<tr>" + "".join(f"<td>{html.escape(str(getattr(recorded, name)))}" for name in columns)
        for recorded in reversed(counters.requests)
    )
    totals = ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counters.totals.items())
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=2>"
        "<title>Simulator</title><style>body{font:15px system-ui;margin:2rem}td,th{padding:.2rem .8rem;"
        "text-align:left;border-bottom:1px solid #ddd}</style>"
        f"<h1>OpenAI-compatible simulator</h1><p>{totals}</p><table><tr>{head}{''.join(rows)}</table></html>"
    )
