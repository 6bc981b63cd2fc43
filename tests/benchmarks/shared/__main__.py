"""The command: `python -m tests.benchmarks.shared TABLE`."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks.harness import LOAD_CORE, SERVER_CORE, start_load
from tests.benchmarks.prepare import AGNO, CACHE, PEERS_FOLDER
from tests.benchmarks.shared.tables import TABLES, Context, printed
from tests.benchmarks.shared.workers import redis_program
from tests.matrix.environments import Failed

EPILOG = f"""\
Workers and Redis run on one core, the API and its clients on another. CPU time is that of all processes, Redis
included, by their own clocks. Each round has every row once, and every other round has them the other way round;
ratios are taken within a round, and their median is printed with the lowest and the highest.

Tables:
{chr(10).join(f"  {name:9} {table.title}" for name, table in TABLES.items())}

It needs Linux, Go, redis-server and, for the table "ways", node and npm. Close what else runs on the machine.

Exit codes:
  0  every event arrived
  1  a worker lost or garbled an event, or a stream did not end
  2  it could not be run
"""


def main() -> int:
    """Reads the command line and runs it."""
    options = _parser().parse_args()
    try:
        return asyncio.run(_run(options))
    except Failed as error:
        sys.stderr.write(f"It can't be run: {error}\n")
        return 2
    except asyncio.CancelledError:
        return 130


async def _run(options: argparse.Namespace) -> int:
    """Runs it; a signal cancels it, so that whatever it has started is ended."""
    running = asyncio.ensure_future(_measure(options))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, lambda: running.cancelling() or running.cancel())
    return await running


async def _measure(options: argparse.Namespace) -> int:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    samples, failed = [], False
    about = _about()
    sys.stdout.write("\n".join(about) + "\n")
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as work:
        async with start_load(options.cache, Path(work), tls=False) as load:
            for name in options.tables:
                table, found = TABLES[name], []
                rounds = options.rounds or table.rounds
                for number in range(1, rounds + 1):
                    sys.stderr.write(f"{name}: round {number} of {rounds}\n")
                    context = Context(number, load, options.cache, options.only)
                    found += [sample async for sample in table.round(context)]
                sys.stdout.write(f"\n{printed(table, found)}")
                sys.stdout.flush()
                samples += found
                failed |= any(each.problems for each in found)
    if options.json:
        kept = {"about": about, "samples": [*map(asdict, samples)]}
        options.json.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    return int(failed)


def _about() -> list[str]:
    said = subprocess.run([redis_program(), "--version"], capture_output=True, text=True, check=True).stdout
    node = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout if shutil.which("node") else "-"
    npm = json.loads((PEERS_FOLDER / "package.json").read_text("utf-8"))["dependencies"]
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return [
        f"workers and Redis on core {SERVER_CORE}, API and clients on core {LOAD_CORE}",
        f"{processor}, Linux {platform.release()}, Python {platform.python_version()}, {said.partition(' sha=')[0]}",
        f"node {node.strip()}, {', '.join(f'{name} {version}' for name, version in npm.items())}, {AGNO[0]}",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.shared",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("tables", nargs="+", choices=list(TABLES), metavar="TABLE", help="one or more of those below")
    add("--rounds", type=int, metavar="N", help="how often each row runs (by default the table's own number)")
    add("--only", default="", metavar="TEXT", help="only the rows whose names hold it")
    add("--json", type=Path, metavar="FILE", help="write every figure of every round there")
    add("--cache", type=Path, default=CACHE, metavar="DIR", help=f"where what is built is kept (default: {CACHE})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
