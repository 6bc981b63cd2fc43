"""`python -m tests.logs.mirror.chances --store memory --seeds 1000`: a shared log with random faults.

Each seed is a number of random steps of two processes, their producers, clients and faults. A seed that fails is
printed with its steps; `--seed N` repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from pathlib import Path

from tests.logs.mirror.chances.memory import play_in_virtual_time
from tests.logs.mirror.chances.redis import play_all
from tests.logs.mirror.chances.world import World
from tests.redis_servers import redis_server

MOST_PRINTED = 3
GROUP = 200
"""Seeds after which the time is looked at, and that share a server."""


def main() -> int:
    write = sys.stdout.write
    options = _parser().parse_args()
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    first = options.first if options.seed is None else options.seed
    most = options.seeds if options.seed is None else 1
    played = failed = 0
    for number in range(first, first + most, GROUP):
        for world in _play(range(number, min(number + GROUP, first + most)), options):
            played += 1
            if world.failures:
                failed += 1
                if failed <= MOST_PRINTED:
                    write("\n  ".join([f"seed {world.seed}:", *world.failures, "after", *world.steps]) + "\n")
        if options.minutes and time.monotonic() - began > options.minutes * 60:
            break
    write(f"{played} seeds of {options.steps} steps, {failed} failed, {time.monotonic() - began:.0f} s\n")
    return 1 if failed else 0


def _play(seeds: range, options: argparse.Namespace) -> list[World]:
    if options.store == "memory":
        return [play_in_virtual_time(seed, options.steps) for seed in seeds]
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as server:
        return asyncio.run(play_all(server, seeds, options.steps))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.logs.mirror.chances", description=__doc__)
    parser.add_argument("--store", choices=["memory", "redis"], default="memory", help="where the streams are stored")
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--steps", type=int, default=40, help="steps of each seed")
    parser.add_argument("--minutes", type=float, default=0, help="end after so many minutes; 0: when all are done")
    return parser


if __name__ == "__main__":
    sys.exit(main())
