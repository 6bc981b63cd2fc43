"""The command: `python -m tests.benchmarks`."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import resource
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks.harness import (
    LOAD_CORE,
    SERVER_CORE,
    Garbled,
    Load,
    counts_instructions,
    sample,
    start_load,
    start_server,
)
from tests.benchmarks.measure import Sample, above
from tests.benchmarks.modes import MODES, Mode, modes, runs
from tests.benchmarks.prepare import CACHE
from tests.benchmarks.report import plot, tables
from tests.benchmarks.servers import QUICK, SERVERS, Server, chosen
from tests.matrix.environments import Failed

DESCRIPTION = "Measures what a relayed event costs: this extension beside its peers, in one run on one machine."

EPILOG = f"""\
An API of OpenAI's shape and its clients are one Go program on one core; the servers run one at a time on another.
Each round has every server once, so whatever else the machine does meets all of them; ratios are taken within a
round, and their median over the rounds is printed with the lowest and the highest. What a server has used is its own
processes' CPU clock and, where `perf stat` counts them, its instructions. Every event is checked.

Modes:
{chr(10).join(f"  {name:9} {meaning}" for name, meaning in MODES.items())}

It needs Linux, Go with Gin's sources (Debian: golang-go, golang-github-gin-gonic-gin-dev) and nginx; a server that
can't be had is listed with the reason. Programs, and an environment with the Python peers if this one lacks any, are
made once and kept in --cache; LiteLLM alone is 750 MB. Close what else runs on the machine.

Examples:
  python -m tests.benchmarks --quick                                     under a minute
  python -m tests.benchmarks --json figures.json --plot figures.svg      everything; more than an hour
  python -m tests.benchmarks --only ours,gin --mode lockstep,paced
  python -m tests.benchmarks --only ours-uvicorn,features --mode lockstep   what each feature costs

Exit codes:
  0  every event arrived
  1  a server lost or garbled an event
  2  it could not be run
"""


def main() -> int:
    """Reads the command line and runs it."""
    options = _parser().parse_args()
    if options.list:
        sys.stdout.write("".join(f"{each.name:32} {each.group:10} {each.about}\n" for each in SERVERS))
        return 0
    try:
        return asyncio.run(_run(options))
    except Failed as error:
        sys.stderr.write(f"It can't be run: {error}\n")
        return 2
    except TimeoutError:
        sys.stderr.write("It can't be run: the load does not answer\n")
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
    _allow_many_files()
    servers, wanted = _servers(options), _modes(options)
    run = Run(servers, wanted, options)
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as work:
        async with start_load(options.cache, Path(work), tls=options.tls) as load:
            await run.rounds(load)
    about = _about(options, counting=run.counting)
    groups = {each.name: each.group for each in servers}
    sys.stdout.write("\n" + tables(run.samples, wanted, groups, run.missing, about))
    if options.json:
        kept = {"about": about, "began": began, "seconds": time.time() - began, "missing": run.missing}
        options.json.write_text(json.dumps({**kept, "samples": [*map(asdict, run.samples)]}, indent=1) + "\n", "utf-8")
    if options.plot:
        options.plot.write_text(plot(run.samples, wanted, groups), "utf-8")
    return 1 if any(each.problems for each in run.samples) or not run.samples else 0


class Run:
    """All rounds: what was measured, and what was not for which reason."""

    def __init__(self, servers: list[Server], wanted: list[Mode], options: argparse.Namespace) -> None:
        self.samples: list[Sample] = []
        self.missing: dict[str, str] = {}
        self.counting = False
        self._servers, self._modes, self._options = servers, wanted, options
        self._progress = Progress(len(servers) * options.rounds)

    async def rounds(self, load: Load) -> None:
        """Every server once in each round, beginning with another one each time."""
        self.counting = await counts_instructions()
        for number in range(self._options.rounds):
            first = number % len(self._servers)
            for server in self._servers[first:] + self._servers[:first]:
                await self._server(server, load, number + 1)
        self._progress.close()
        self.samples = above(self.samples, "rss", {each.name: each.beside for each in self._servers})

    async def _server(self, server: Server, load: Load, number: int) -> None:
        self._progress.step(f"round {number} of {self._options.rounds}: {server.name}")
        if server.name in self.missing:
            return
        try:
            for together in runs([mode for mode in self._modes if mode.kind in server.kinds]):
                async with start_server(server, load, self._options.cache) as running:
                    for mode in together:
                        self._progress.say(f"round {number} of {self._options.rounds}: {server.name} {mode.name}")
                        self.samples.append(await sample(running, load, mode, number, counting=self.counting))
        except Garbled as garbled:
            self.samples.append(Sample(server.name, "warm-up", number, {}, [str(garbled)]))
        except Failed as failed:
            self.missing[server.name] = str(failed)


class Progress:
    """One line that changes on a terminal, otherwise a line per server."""

    def __init__(self, steps: int) -> None:
        self._steps, self._done, self._began = steps, 0, time.monotonic()
        self._live = sys.stderr.isatty()

    def step(self, text: str) -> None:
        """Another server begins."""
        self._done += 1
        if self._live:
            self.say(text)
        else:
            sys.stderr.write(f"[{self._done}/{self._steps}] {text}\n")

    def say(self, text: str) -> None:
        """On a terminal: what is being done."""
        if self._live:
            passed = time.monotonic() - self._began
            sys.stderr.write(f"\r\x1b[K[{self._done}/{self._steps}] {passed // 60:.0f}:{passed % 60:02.0f} {text}")
            sys.stderr.flush()

    def close(self) -> None:
        """Leaves an empty line."""
        if self._live:
            sys.stderr.write("\r\x1b[K")


def _servers(options: argparse.Namespace) -> list[Server]:
    try:
        names = options.only or (QUICK if options.quick else [server.group for server in SERVERS])
        return chosen(list(names))
    except KeyError as unknown:
        raise Failed(f"there is no server {unknown}; --list says which there are") from None


def _modes(options: argparse.Namespace) -> list[Mode]:
    kinds = options.mode or (["lockstep"] if options.quick else list(MODES))
    if unknown := set(kinds) - set(MODES):
        raise Failed(f"there is no mode {', '.join(sorted(unknown))}; there are {', '.join(MODES)}")
    return modes(kinds, seconds=options.seconds or (1.0 if options.quick else 2.0))


def _about(options: argparse.Namespace, *, counting: bool) -> list[str]:
    one = " (one core for both: the figures are of little use)" if SERVER_CORE == LOAD_CORE else ""
    upstream = "TLS" if options.tls else "plain HTTP"
    return [
        f"{options.rounds} round(s), medians; ratios within a round: median (lowest to highest)",
        f"servers on core {SERVER_CORE}, API and clients on core {LOAD_CORE}{one}; upstream over {upstream}",
        "instructions: of user space and kernel" if counting else "instructions: not counted on this machine",
        f"{_processor()}, Linux {platform.release()}, Python {platform.python_version()}",
    ]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _allow_many_files() -> None:
    """A thousand streams are four thousand sockets; what is started inherits the limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help=f"only {', '.join(QUICK)}, in lockstep")
    add("--rounds", type=int, default=5, metavar="N", help="how often each server runs (default: 5)")
    add("--only", type=_list, metavar="NAME[,NAME]", help="only these servers or groups of servers; see --list")
    add("--mode", type=_list, metavar="MODE[,MODE]", help="only these modes")
    add("--seconds", type=float, metavar="S", help="of lockstep, bulk and short (default: 2, with --quick 1)")
    add("--tls", action="store_true", help="ask the API over TLS, with a certificate made for the run")
    add("--json", type=Path, metavar="FILE", help="write every figure of every round there")
    add("--plot", type=Path, metavar="FILE", help="draw bars there, as SVG")
    add("--cache", type=Path, default=CACHE, metavar="DIR", help=f"where what is built is kept (default: {CACHE})")
    add("--list", action="store_true", help="say which servers and groups there are; run nothing")
    return parser


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
