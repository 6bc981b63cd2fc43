"""Runs samples, and prints what is wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from tests.dialects.sample import Sample
from tests.dialects.ways import Trial, bench

AT_ONCE = 8
"""Samples that are run side by side."""
SHOWN = 12
"""Differences of a sample that are printed, unless all are asked for."""


async def judge(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """What is wrong with each sample, by its name."""
    async with bench(samples) as running:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(sample: Sample) -> list[str]:
            async with gate:
                return await Trial(running, sample).run()

        found = await asyncio.gather(*map(one, samples))
    return {sample.name: problems for sample, problems in zip(samples, found, strict=True)}


async def run(write: Callable[[str], object], samples: Sequence[Sample], *, all_of_them: bool = False) -> bool:
    """Prints a line for each sample, and below it what is wrong. Returns whether nothing is."""
    began = time.monotonic()
    found = await judge(samples)
    for sample in samples:
        problems = found[sample.name]
        write(f"{'FAULT' if problems else 'ok':6}{sample.kind:12}{sample.name}\n")
        shown = problems if all_of_them else problems[:SHOWN]
        for problem in shown:
            write(f"        {problem}\n")
        if len(problems) > len(shown):
            write(f"        … and {len(problems) - len(shown)} more; --all prints them\n")
    faults = sum(map(bool, found.values()))
    write(f"{len(samples)} samples, {faults} with faults, {time.monotonic() - began:.0f} s\n")
    return not faults
