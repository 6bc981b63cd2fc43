"""The tables of workers under the load: relays with an app model, lockstep, and other ways to do the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import Load
from tests.benchmarks.measure import Sample
from tests.benchmarks.modes import MANY
from tests.benchmarks.shared.workers import AGNO, MEMORY, REDIS, RESUMABLE, SQLITE, XREAD, Deployment, Way, deployed
from tests.matrix.environments import Failed

RATE = 20.0


@dataclass(frozen=True)
class Row:
    """One way under one load."""

    name: str
    way: Way
    task: dict[str, Any]
    workers: int = 1
    switches: str = ""


def paced(streams: int, seconds: float, **members: Any) -> dict[str, Any]:
    """So many streams of 20 events a second, which begin one after the other."""
    return {"streams": streams, "events": MANY, "seconds": seconds, "rate": RATE, "ramp": 1.0, **members}


def relay_rows(streams: int, seconds: float) -> list[Row]:
    """A model of the app's own that writes 20 events a second, and a plain relayed event."""
    plain, app = paced(streams, seconds), paced(streams, seconds, retained=True, model="paced")
    lockstep = {"streams": 1, "events": MANY, "seconds": 3.0, "ahead": 1}
    return [
        Row("plain, lockstep", MEMORY, lockstep),
        Row("plain", MEMORY, plain),
        Row("plain, Redis log", REDIS, plain),
        Row("app model, memory log", MEMORY, app, switches="paced-model"),
        Row("app model, Redis log", REDIS, app, switches="paced-model"),
        Row("app model, SQLite log", SQLITE, app, switches="paced-model"),
    ]


def lockstep_rows(seconds: float) -> list[Row]:
    """A kept stream that its own client reads, event by event."""
    task = {"streams": 1, "events": MANY, "seconds": seconds, "ahead": 1, "retained": True}
    return [Row(f"{way.name} log", way, task) for way in (MEMORY, REDIS, SQLITE)]


def way_rows(streams: int, seconds: float) -> list[Row]:
    """The same streams in all ways: read by their own client only, and by one more on another worker."""
    alone = paced(streams, seconds, retained=True)
    both = alone | {"readers": 2}
    ways = (REDIS, XREAD, RESUMABLE, AGNO)
    return [
        *(Row(f"{way.name}, own reader", way, alone, workers=2) for way in ways),
        *(Row(f"{way.name}, one more reader elsewhere", way, both, workers=2) for way in ways),
    ]


async def sample(row: Row, table: str, number: int, load: Load, cache: Path) -> Sample:
    """One row of one round: the load does it, and the accounts of all processes are read meanwhile, or around it."""
    seconds = float(row.task["seconds"])
    async with deployed(
        row.way, load.base_url, cache, workers=row.workers, switches=row.switches, seconds=seconds
    ) as deployment:
        for warm in _warm_up(row):
            if (outcome := await load.run(deployment.task(**warm)))["problems"] or not outcome["streams"]:
                raise Failed("; ".join(outcome["problems"]) or outcome["refusal"] or "nothing came")
        whole = deployment.cpu()
        running = asyncio.ensure_future(load.run(deployment.task(**row.task)))
        try:
            if rate := row.task.get("rate"):
                steady, passed = await _between(deployment, row.task["ramp"] + 0.7, seconds - 0.5)
                events = row.task["streams"] * rate * passed
            outcome = await running
        finally:
            running.cancel()
        whole = _used(whole, deployment.cpu())
    problems = list(outcome["problems"])
    if missing := outcome["unfinished"] + outcome["refused"]:
        problems.append(f"{missing} streams did not end or were refused {outcome['refusal']}".strip())
    if not rate:
        steady, events = whole, max(outcome["events"], 1)
    used = {name: value * 1e6 / events for name, value in steady.items()}
    figures = {"cpu": sum(used.values()), "redis": used["redis"], "events": float(outcome["events"])}
    if rate:
        figures["whole"] = sum(whole.values()) * 1e6 / max(outcome["events"], 1)
        missed = 1 - outcome["events"] / (row.task["streams"] * rate * (seconds - row.task["ramp"] / 2))
        if missed > 0.1:
            problems.append(f"{missed:.0%} of the events came too late to be sent")
    figures |= {name: outcome[name] for name in ("p50", "p99") if outcome[name]}
    return Sample(row.name, table, number, figures, problems)


async def _between(deployment: Deployment, start: float, stop: float) -> tuple[dict[str, float], float]:
    """What the processes use between two moments, in seconds from now; and the seconds between them.

    Streams neither begin nor end meanwhile.
    """
    await asyncio.sleep(start)
    before, begin = deployment.cpu(), time.monotonic()
    await asyncio.sleep(stop - start)
    return _used(before, deployment.cpu()), time.monotonic() - begin


def _used(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


def _warm_up(row: Row) -> Sequence[dict[str, Any]]:
    """Every code path of the row, in small; nothing of it is measured."""
    task = {**row.task, "streams": min(row.task["streams"], 5)}
    if row.switches:  # the model says when it ends
        return ({"streams": 1, "events": 500, "seconds": 1.0, "ahead": 1}, {**task, "streams": 5, "ramp": 0.1})
    return ({**task, "seconds": 1.0},)
