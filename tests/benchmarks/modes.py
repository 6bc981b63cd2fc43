"""The modes: what the load does to a server, and what is computed of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

MODES = {
    "lockstep": "event n+1 leaves the API when event n has arrived at the client: no two can share a read or a write",
    "bulk": "as fast as it goes, at most 2,000 events ahead of the clients: one stream, and 20 at the same time",
    "short": "streams of 16 events back to back, on 8 connections that are kept",
    "paced": "100, 500 and 1,000 streams of 20 events a second each",
    "vanish": "500 clients leave at once: the time to the next stream's first event",
}


@dataclass(frozen=True)
class Figure:
    """One column of a mode's table."""

    name: str
    unit: str
    digits: int = 1
    better: Literal["low", "high"] = "low"


@dataclass(frozen=True)
class Mode:
    """One table: what the load is asked, and its figures, the first of which is compared."""

    name: str
    kind: str
    title: str
    task: dict[str, Any]
    figures: tuple[Figure, ...]
    strict: bool = True
    """Whether a stream that does not end in time is a failure; otherwise the server has just too much to do."""

    @property
    def alone(self) -> bool:
        """Whether it needs a server that has done nothing before: others leave memory and unfinished streams behind."""
        return self.kind in ("paced", "vanish")


COST = Figure("cpu", "CPU µs/event")
COUNTED = Figure("instructions", "k instructions/event")
LATENCY = (Figure("p50", "p50 µs", 0), Figure("p99", "p99 µs", 0))
ABOVE = Figure("rss_above_bare", "KB above bare Quart")
MANY = 1 << 30


def modes(kinds: list[str], *, seconds: float) -> list[Mode]:
    """Those of *kinds*, in the order of `MODES`; *seconds* is how long a phase takes that has no number of its own."""
    return [mode for kind in MODES if kind in kinds for mode in _KINDS[kind](seconds)]


def runs(wanted: list[Mode]) -> list[list[Mode]]:
    """*wanted*, as they share a start of the server."""
    together = [mode for mode in wanted if not mode.alone]
    return ([together] if together else []) + [[mode] for mode in wanted if mode.alone]


def _lockstep(seconds: float) -> Iterator[Mode]:
    yield Mode(
        "lockstep",
        "lockstep",
        "Lockstep: one event per read and write",
        {"streams": 1, "events": MANY, "seconds": seconds, "ahead": 1},
        (COST, COUNTED, *LATENCY),
    )


def _bulk(seconds: float) -> Iterator[Mode]:
    for streams in (1, 20):
        yield Mode(
            f"bulk-{streams}",
            "bulk",
            f"Bulk: as fast as it goes, {streams} at a time",
            {"streams": streams, "events": MANY, "seconds": seconds, "ahead": 2000 // streams},
            (COST, COUNTED, Figure("rate", "events/s", 0, "high")),
        )


def _short(seconds: float) -> Iterator[Mode]:
    yield Mode(
        "short",
        "short",
        "Short: streams of 16 events, back to back",
        {"streams": 8, "events": 16, "seconds": seconds, "repeat": True},
        (
            Figure("rate", "streams/s", 0, "high"),
            Figure("cpu", "CPU µs/stream", 0),
            Figure("instructions", "k instructions/stream"),
            Figure("first", "first event µs", 0),
        ),
    )


def _paced(_: float) -> Iterator[Mode]:
    for streams in (100, 500, 1000):
        yield Mode(
            f"paced-{streams}",
            "paced",
            f"Paced: {streams:,} streams of 20 events a second",
            {"streams": streams, "events": MANY, "seconds": 6.0, "ramp": 2.0, "rate": 20.0, "patience": 10.0},
            (Figure("p99", "p99 µs", 0), Figure("p50", "p50 µs", 0), Figure("rss", "RSS KB/stream"), ABOVE, COST),
            strict=False,
        )


def _vanish(_: float) -> Iterator[Mode]:
    yield Mode(
        "vanish",
        "vanish",
        "Vanish: 500 clients leave at once",
        {"streams": 500, "events": MANY, "seconds": 60.0, "ramp": 2.0, "rate": 20.0, "patience": 5.0, "leave": True},
        (Figure("first", "next first event µs", 0), Figure("released", "all given up upstream after ms")),
        strict=False,
    )


_KINDS = {"lockstep": _lockstep, "bulk": _bulk, "short": _short, "paced": _paced, "vanish": _vanish}

WARM_UP = (
    {"streams": 1, "events": 500, "seconds": 2.0, "ahead": 1},
    {"streams": 4, "events": 16, "seconds": 0.5, "repeat": True},
)
"""What each server does first; nothing of it is measured."""


def figures_of(mode: Mode, outcome: dict[str, Any], used: dict[str, float]) -> dict[str, float]:
    """The figures of *mode*: of what the load saw, and what the server has *used* meanwhile."""
    events, streams = outcome["events"], outcome["streams"]
    if mode.kind == "vanish":
        found = {"first": outcome["first"]}
        return found | ({"released": outcome["released"]} if outcome["released"] >= 0 else {})
    if mode.kind == "short":
        each, rate = streams, streams / outcome["seconds"]
    else:
        each, rate = events, events / outcome["seconds"]
    found = {"rate": rate, **{name: outcome[name] for name in ("p50", "p99", "first")}}
    if "cpu" in used and each:
        found["cpu"] = used["cpu"] * 1e6 / each
    if "instructions" in used and each:
        found["instructions"] = used["instructions"] / 1e3 / each
    if "rss" in used and mode.kind == "paced" and not outcome["unfinished"] + outcome["refused"]:  # all open
        found["rss"] = used["rss"] / mode.task["streams"]
    return {name: value for name, value in found.items() if value or name == "rss"}
