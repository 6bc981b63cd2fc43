"""`python -m tests.logs.mirror.sequences --store redis --length 5`: all sequences of operations of two processes.

It runs every sequence of up to so many operations on a log that two processes share, and compares what each process
reads from every place with a model. `--only "create 0, append 0, lose 0"` runs one sequence.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from pathlib import Path

from tests.logs.mirror.sequences.model import Sequence, sequences
from tests.logs.mirror.sequences.waves import Result, run_these
from tests.logs.mirror.sequences.worlds import in_memory, in_redis
from tests.logs.mirror.virtual_time import run
from tests.redis_servers import redis_server

MOST_PRINTED = 20


def main() -> int:
    write = sys.stdout.write
    options = _parser().parse_args()
    logging.disable(logging.CRITICAL)
    wanted = [_sequence(options.only)] if options.only else list(sequences(options.length))
    began = time.monotonic()
    result = _run_in_memory(wanted) if options.store == "memory" else _run_in_redis(wanted)
    for failed in result.failed[:MOST_PRINTED]:
        operations = ", ".join(f"{name} {process}" for name, process in failed.sequence)
        write(f"{operations}\n  {failed.failure}\n")
    for length, number in sorted(result.lengths.items()):
        write(f"{number:6} sequences of {length}\n")
    took = f"{time.monotonic() - began:.0f} s"
    write(f"{result.lengths.total():6} on {options.store} in {took}, {len(result.failed)} failed\n")
    return 1 if result.failed else 0


def _run_in_memory(wanted: list[Sequence]) -> Result:
    return run(run_these(in_memory, wanted))


def _run_in_redis(wanted: list[Sequence]) -> Result:
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as server:
        return asyncio.run(run_these(in_redis(server), wanted))


def _sequence(text: str) -> Sequence:
    operations = (operation.split() for operation in text.split(","))
    return tuple((name, int(process)) for name, process in operations)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.logs.mirror.sequences", description=__doc__)
    parser.add_argument("--store", choices=["memory", "redis"], default="memory", help="where the streams are stored")
    parser.add_argument("--length", type=int, default=4, help="the most operations")
    parser.add_argument("--only", help="one sequence")
    return parser


if __name__ == "__main__":
    sys.exit(main())
