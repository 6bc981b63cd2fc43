"""Runs very many sequences, hundreds at a time on two logs, step by step."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from quart_openai_sse.logs import StreamLog
from tests.logs.mirror.sequences.model import Sequence, sequences
from tests.logs.mirror.sequences.run import Run

WAVE = 500
"""Sequences that are run step by step together."""
AT_ONCE = 40
"""Operations at the same time: a process that is asked something has a second to answer."""


class World(Protocol):
    """Two processes on one store, which is new."""

    logs: tuple[StreamLog, StreamLog]

    async def lose(self, streams: list[tuple[str, int]]) -> None:
        """Lets the other process take the process of each of *streams*, a key and a process, for dead."""
        ...

    async def expire(self) -> None:
        """Lets time pass until streams that have ended are no longer kept."""
        ...


Worlds = Callable[[], AbstractAsyncContextManager[World]]


@dataclass
class Result:
    """What was run, and what went wrong."""

    lengths: Counter[int] = field(default_factory=Counter)
    failed: list[Run] = field(default_factory=list)


async def run_all(worlds: Worlds, length: int) -> Result:
    """Runs all sequences of up to *length* operations."""
    return await run_these(worlds, list(sequences(length)))


async def run_these(worlds: Worlds, wanted: list[Sequence]) -> Result:
    """Runs the *wanted* sequences. Those in which time passes at the same steps share a store."""
    groups: defaultdict[tuple[int, ...], list[Sequence]] = defaultdict(list)
    for sequence in wanted:
        groups[tuple(number for number, (name, _) in enumerate(sequence) if name == "expire")].append(sequence)
    result = Result()
    for group in groups.values():
        for start in range(0, len(group), WAVE):
            wave = group[start : start + WAVE]
            async with worlds() as world:
                runs = [Run(world.logs, f"k{number}", sequence) for number, sequence in enumerate(wave)]
                await _run_wave(world, runs)
            result.lengths.update(len(sequence) for sequence in wave)
            result.failed += [run for run in runs if run.failure]
    return result


async def _run_wave(world: World, runs: list[Run]) -> None:
    for number in range(max(len(run.sequence) for run in runs)):
        going = [run for run in runs if number < len(run.sequence)]
        await _some_at_once(run.step(number) for run in going)
        operations = [(run, *run.sequence[number]) for run in going]
        await world.lose([(run.key, process) for run, name, process in operations if name == "lose"])
        if any(name == "expire" for _, name, _ in operations):
            await world.expire()
        await asyncio.gather(*(run.settle() for run in going))
    await _some_at_once(run.compare() for run in runs)


async def _some_at_once(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    turn = asyncio.Semaphore(AT_ONCE)

    async def run(coroutine: Coroutine[Any, Any, None]) -> None:
        async with turn:
            await coroutine

    await asyncio.gather(*map(run, coroutines))
