"""What the machine says of processes, and what becomes of many figures: medians, spreads, ratios."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

PROC = Path("/proc")


@dataclass(frozen=True)
class Sample:
    """What one server did in one mode of one round."""

    server: str
    mode: str
    round: int
    figures: dict[str, float]
    problems: list[str] = field(default_factory=list)
    """Events that were lost or garbled."""


@dataclass(frozen=True)
class Spread:
    """The median of some figures, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """That of *values*, of which there is one at least."""
        known = sorted(values)
        return cls(median(known), known[0], known[-1])


def spreads(samples: Iterable[Sample], mode: str, figure: str) -> dict[str, Spread]:
    """By server: the spread of a figure over the rounds that have it."""
    found = defaultdict(list)
    for sample in samples:
        if sample.mode == mode and figure in sample.figures:
            found[sample.server].append(sample.figures[figure])
    return {server: Spread.of(values) for server, values in found.items()}


def ratios(samples: Iterable[Sample], mode: str, figure: str, *, against: str | Mapping[str, str]) -> dict[str, Spread]:
    """By server: the spread of its ratio to the server *against*, each taken within one round.

    *against* may name another one for each server; without one, it has no ratio.
    """
    rounds: dict[int, dict[str, float]] = defaultdict(dict)
    for sample in samples:
        if sample.mode == mode and figure in sample.figures:
            rounds[sample.round][sample.server] = sample.figures[figure]
    found = defaultdict(list)
    for values in rounds.values():
        for server, value in values.items():
            if base := values.get(against if isinstance(against, str) else against.get(server, "")):
                found[server].append(value / base)
    return {server: Spread.of(values) for server, values in found.items()}


def above(samples: Iterable[Sample], figure: str, beside: Mapping[str, str]) -> list[Sample]:
    """*samples*, with a figure `<figure>_above_bare` more: above that of another server in the same round.

    *beside* is the other one, by server.
    """
    samples = list(samples)
    known = {(each.server, each.mode, each.round): each.figures[figure] for each in samples if figure in each.figures}
    found = []
    for each in samples:
        base = known.get((beside.get(each.server, ""), each.mode, each.round))
        if base is not None and figure in each.figures:
            each = replace(each, figures={**each.figures, f"{figure}_above_bare": each.figures[figure] - base})
        found.append(each)
    return found


def session(leader: int) -> list[int]:
    """The processes of the session that *leader* leads."""
    found = []
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text("utf-8", "replace")
            except OSError:  # it has ended meanwhile
                continue
            if session_of(stat) == leader:
                found.append(int(folder.name))
    return found


def session_of(stat: str) -> int:
    """The session in a line of `/proc/<pid>/stat`, whose second field is a name that may hold anything."""
    return int(stat.rpartition(")")[2].split()[3])


def cpu_seconds(pids: Iterable[int]) -> float:
    """What these processes have used by their own CPU clocks: all threads, user and system, in nanoseconds' steps."""
    return sum(time.clock_gettime(_cpu_clock(pid)) for pid in pids)


def _cpu_clock(pid: int) -> int:
    return (~pid << 3) | 2  # as clock_getcpuclockid(3) makes it; Python has it for threads only


def resident_kilobytes(pids: Iterable[int]) -> float:
    """What these processes have in memory."""
    pages = sum(int((PROC / str(pid) / "statm").read_text("utf-8").split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def instructions_of(report: str) -> int | None:
    """The number in what `perf stat -x, -e instructions` writes; `None` where the machine counts none."""
    for line in report.splitlines():
        count, _, event, *_ = [*line.split(","), "", "", ""]
        if event.startswith("instructions") and count.isdigit():
            return int(count)
    return None
