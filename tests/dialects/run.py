"""Runs samples, and prints what is wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.dialects.cuts import cuts
from tests.dialects.sample import Sample
from tests.dialects.trial import Trial, bench
from tests.dialects.whole import WAYS

AT_ONCE = 8
"""Samples that are run side by side."""
SHOWN = 12
"""Differences of a sample that are printed, unless all are asked for."""


async def judge(
    samples: Sequence[Sample], *, python_sdk: bool = False, node_cache: Path | None = None
) -> dict[str, list[str]]:
    """What is wrong with each sample, by its name.

    With *python_sdk* OpenAI's SDK for Python reads them as well, with *node_cache* the SDKs for JavaScript, which are
    installed there.
    """
    async with bench(samples) as running:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(sample: Sample) -> list[str]:
            async with gate:
                return await _problems(Trial(running, sample))

        problems = await asyncio.gather(*map(one, samples))
        found = {sample.name: list(each) for sample, each in zip(samples, problems, strict=True)}

        def note(sample: Sample, problem: str) -> None:
            found[sample.name].append(problem)

        if python_sdk or node_cache is not None:
            from tests.dialects import sdks  # imports openai, which takes a second

            if python_sdk:
                await sdks.python(samples, running, note)
            if node_cache is not None:
                await sdks.node(samples, running, note, cache=node_cache)
    return found


async def _problems(trial: Trial) -> list[str]:
    """What is wrong with a sample. A way that raises does not keep the others from being tried."""
    trial.check_the_oracle()
    for way in (*WAYS, cuts):
        try:
            await way(trial)
        except Exception as error:
            trial.note(way.__name__.strip("_"), [f"{type(error).__name__}: {error}"])
    trial.compare_messages()
    return trial.problems


async def run(
    write: Callable[[str], object], samples: Sequence[Sample], *, every: bool = False, node_cache: Path | None = None
) -> bool:
    """Prints a line for each sample, and below it what is wrong. Returns whether nothing is."""
    began = time.monotonic()
    found = await judge(samples, python_sdk=True, node_cache=node_cache)
    for sample in samples:
        problems = found[sample.name]
        remark = f"    expected: {sample.remark}" if problems and sample.remark else ""
        write(f"{'FAULT' if problems else 'ok':6}{sample.kind:12}{sample.name}{remark}\n")
        shown = problems if every else problems[:SHOWN]
        for problem in shown:
            write(f"        {problem}\n")
        if len(problems) > len(shown):
            write(f"        … and {len(problems) - len(shown)} more; --all prints them\n")
    faults = sum(map(bool, found.values()))
    write(f"{len(samples)} samples, {faults} with faults, {time.monotonic() - began:.0f} s\n")
    return not faults
