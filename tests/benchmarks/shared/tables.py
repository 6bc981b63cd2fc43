"""The tables: what each one measures in a round, and its columns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks.harness import Load
from tests.benchmarks.measure import Sample, ratios, spreads
from tests.benchmarks.modes import Figure
from tests.benchmarks.report import aligned, ratio
from tests.benchmarks.shared import bare, loaded, starts
from tests.benchmarks.shared.loaded import Row

Round = Callable[["Context"], AsyncIterator[Sample]]


@dataclass(frozen=True)
class Context:
    """A round, and what it needs."""

    number: int
    load: Load
    cache: Path
    only: str = ""
    """What the names of rows must hold, of the tables whose rows run by themselves."""


@dataclass(frozen=True)
class Table:
    """One of them."""

    title: str
    figures: tuple[Figure, ...]
    round: Round
    rounds: int = 5
    against: tuple[str, ...] = ()
    """The rows whose first figure the others' are divided by."""
    finish: Callable[[list[Sample]], list[Sample]] = list


CPU = (Figure("cpu", "CPU µs/event"), Figure("redis", "of it Redis"))
WHOLE = Figure("whole", "with starts and ends")
SPREAD = (Figure("p50", "p50 ms", 2), Figure("p95", "p95 ms", 2))


def _rows(table: str, rows: Callable[[], Sequence[Row]]) -> Round:
    """The rows of a round in turns: every other round has them the other way round."""

    async def samples(context: Context) -> AsyncIterator[Sample]:
        chosen = [row for row in rows() if context.only in row.name]
        for row in chosen if context.number % 2 else reversed(chosen):
            yield await loaded.sample(row, table, context.number, context.load, context.cache)

    return samples


def extra(samples: list[Sample]) -> list[Sample]:
    """*samples*, with what a log costs above the memory log in units of a plain relayed event of the same round."""
    cpu = {(each.server, each.round): each.figures["cpu"] for each in samples}
    found = []
    for each in samples:
        memory = cpu.get(("app model, memory log", each.round))
        if each.server.startswith("app model") and memory is not None and "memory" not in each.server:
            more = {
                name: (each.figures["cpu"] - memory) / cpu[base, each.round]
                for name, base in (("extra", "plain"), ("extra_lockstep", "plain, lockstep"))
                if (base, each.round) in cpu
            }
            each = replace(each, figures=each.figures | more)
        found.append(each)
    return found


TABLES = {
    "relay": Table(
        "Relay: 200 streams of 20 events a second",
        (*CPU, WHOLE, Figure("p99", "p99 µs", 0)),
        _rows("relay", lambda: loaded.relay_rows(200, 8.0)),
        rounds=6,
        against=("app model, memory log", "plain"),
        finish=extra,
    ),
    "lockstep": Table(
        "Lockstep: a kept stream, read by its own client event by event",
        CPU,
        _rows("lockstep", lambda: loaded.lockstep_rows(3.0)),
        rounds=8,
        against=("memory log",),
    ),
    "ways": Table(
        "Ways: 25 streams of 20 events a second on two workers",
        (*CPU, WHOLE, Figure("p50", "p50 µs", 0), Figure("p99", "p99 µs", 0)),
        _rows("ways", lambda: loaded.way_rows(25, 6.0)),
        rounds=4,
        against=("xread, own reader", "xread, one more reader elsewhere"),
    ),
    "live": Table(
        "Live: 1,000 streams of 20 events a second without HTTP",
        (Figure("cores", "cores", 2), *(Figure(name, name, 2) for name in ("writer", "reader", "redis"))),
        lambda each: bare.live(each.number, each.cache, streams=1000, rate=20.0, seconds=6.0),
        rounds=4,
    ),
    "idle": Table(
        "Idle: 10,000 readers that wait, without HTTP",
        (
            Figure("kb", "KB each", 2),
            Figure("above", "above a task", 2),
            Figure("open", "CPU s to open", 2),
            Figure("idle", "CPU s in 5 s idle", 3),
            Figure("back", "s until back", 2),
            Figure("back_cpu", "CPU s for it", 2),
        ),
        lambda each: bare.idle(each.number, each.cache, readers=10_000),
        rounds=3,
    ),
    "memory": Table(
        "Memory: what Redis holds, divided by the bytes of the chunks",
        (
            Figure("usage", "MEMORY USAGE", 3),
            Figure("used", "used_memory", 3),
            Figure("usage_bytes", "bytes a stream", 0),
            Figure("used_bytes", "by used_memory", 0),
            Figure("keys", "keys a stream", 1),
        ),
        lambda each: bare.memory(each.number, each.cache),
        rounds=2,
    ),
    "latency": Table(
        "Latency: from an append to a reader in another process, without HTTP",
        (*SPREAD, Figure("highest", "highest", 2)),
        lambda each: bare.latency(each.number, each.cache, entries=400),
        rounds=3,
    ),
    "stops": Table(
        "Stops: from a DELETE at another worker until the upstream's connection is closed",
        (*SPREAD, Figure("highest", "highest", 2)),
        lambda each: starts.stops(each.number, each.cache, count=60),
        rounds=3,
    ),
    "starts": Table(
        "Starts: from a request to its first event",
        (
            *SPREAD,
            Figure("trips", "round trips", 0),
            Figure("before", "commands", 0),
            Figure("whole", "of the stream", 0),
        ),
        lambda each: starts.starts(each.number, each.cache, count=200),
        rounds=3,
    ),
}


def printed(table: Table, samples: Iterable[Sample]) -> str:
    """The table: medians, and ratios within a round with their spread."""
    samples = table.finish(list(samples))
    names, mode = list(dict.fromkeys(each.server for each in sorted(samples, key=_order))), samples[0].mode
    columns = []
    for figure in table.figures:
        found = spreads(samples, mode, figure.name)
        columns.append((figure.unit, {name: f"{each.median:,.{figure.digits}f}" for name, each in found.items()}))
    for base in table.against:
        found = ratios(samples, mode, table.figures[0].name, against=base)
        columns.append((f"of {base}", {name: ratio(spread) for name, spread in found.items()}))
    for name, heading in (("extra", "extra / plain"), ("extra_lockstep", "extra / lockstep")):
        columns.append((heading, {row: ratio(spread) for row, spread in spreads(samples, mode, name).items()}))
    columns = [(heading, cells) for heading, cells in columns if cells]
    rows = [["", *(heading for heading, _ in columns)]]
    rows += [[name, *(cells.get(name, "-") for _, cells in columns)] for name in names]
    lost = [f"  round {each.round}, {each.server}: {why}" for each in samples for why in each.problems]
    return "\n".join([table.title, *aligned(rows), *(["LOST OR GARBLED", *lost] if lost else [])]) + "\n"


def _order(sample: Sample) -> int:
    """The rows stand as in the first round."""
    return sample.round
