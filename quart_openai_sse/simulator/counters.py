"""What reached a simulator, and what became of it."""

from __future__ import annotations

import asyncio
import html
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Outcome = Literal["running", "finished", "closed_by_peer", "closed_by_server"]

KEPT_REQUESTS = 1000


@dataclass
class Exchange:
    """One request and what became of it. Times are seconds since the simulator's start."""

    number: int
    path: str
    started: float
    headers: dict[str, str | bool]
    """Those of interest, and under ``authorization`` whether there was one."""
    model: str = ""
    stream: bool = False
    status: int | None = None
    tokens: int = 0
    """How many have been sent."""
    outcome: Outcome = "running"
    closed: float | None = None
    """When the answer was finished, or the connection gone."""


@dataclass
class Counters:
    """What reached a simulator: the last 1,000 requests, and the totals of all."""

    exchanges: deque[Exchange] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    totals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("requests", "running", "finished", "closed_by_peer", "closed_by_server", "tokens"), 0
        )
    )
    hanging_up: bool = False
    _start: float = field(default_factory=time.monotonic)
    _waiters: list[asyncio.Future[None]] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the start, on the clock of all the times here."""
        return round(time.monotonic() - self._start, 6)

    async def until(self, condition: Callable[[], T]) -> T:
        """What *condition* returns once that is true; it is asked again at every change. Bound it by a timeout."""
        while not (result := condition()):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return result

    def as_json(self) -> dict[str, Any]:
        """The counter page: ``now``, ``totals``, ``requests``."""
        return {"now": self.now(), "totals": self.totals, "requests": [asdict(e) for e in self.exchanges]}

    def hang_up(self) -> None:
        """From now on it is the server that cuts what is open."""
        self.hanging_up = True

    def open(self, path: str, headers: dict[str, str | bool]) -> Exchange:
        self._count(requests=1, running=1)
        exchange = Exchange(self.totals["requests"], path, self.now(), headers)
        self.exchanges.append(exchange)
        return exchange

    def note(self, exchange: Exchange, **facts: Any) -> None:
        for name, fact in facts.items():
            setattr(exchange, name, fact)
        self._changed()

    def sent(self, exchange: Exchange, tokens: int = 1) -> None:
        exchange.tokens += tokens
        self._count(tokens=tokens)

    def close(self, exchange: Exchange, *, finished: bool) -> None:
        if exchange.outcome == "running":
            cut: Outcome = "closed_by_server" if self.hanging_up else "closed_by_peer"
            exchange.outcome = "finished" if finished else cut
            exchange.closed = self.now()
            self._count(running=-1, **{exchange.outcome: 1})

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
    columns = ("number", "started", "path", "model", "stream", "status", "tokens", "outcome", "closed")
    head = "".join(f"<th>{name}" for name in columns)
    rows = (
        "<tr>" + "".join(f"<td>{html.escape(str(getattr(exchange, name)))}" for name in columns)
        for exchange in reversed(counters.exchanges)
    )
    totals = ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counters.totals.items())
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=2>"
        "<title>Simulator</title><style>body{font:15px system-ui;margin:2rem}td,th{padding:.2rem .8rem;"
        "text-align:left;border-bottom:1px solid #ddd}</style>"
        f"<h1>OpenAI-compatible simulator</h1><p>{totals}</p><table><tr>{head}{''.join(rows)}</table></html>"
    )
