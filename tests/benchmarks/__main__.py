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
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks import against
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
from tests.benchmarks.prepare import CACHE, python_with
from tests.benchmarks.report import plot, tables
from tests.benchmarks.servers import QUICK, SERVERS, Build, Server, chosen
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

--against COMMIT measures the build of another commit, too: every server that runs this extension runs twice in each
round, once with each build, and the two change places from round to round. The commit is installed in an environment
of its own in a temporary folder, with the versions that its .ci/constraints.txt pins; the servers, the load and the
programs are those of this checkout. Names with @ are the other build's, and the column "of @..." has the ratio of this
build to it. --against HEAD compares this build with itself: that spread is the machine's. The package must have no
changes that are not committed.

Examples:
  python -m tests.benchmarks --quick                                     under a minute
  python -m tests.benchmarks --json figures.json --plot figures.svg      everything; more than an hour
  python -m tests.benchmarks --only ours,gin --mode lockstep,paced
  python -m tests.benchmarks --quick --against HEAD~1                    what a commit has changed; a few minutes
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
    commit = await against.resolve(options.against) if options.against else None
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as work:
        async with (
            start_load(options.cache, Path(work), tls=options.tls) as load,
            _other_build(commit, servers, Path(work), options.cache) as build,
        ):
            run = Run(against.units(servers, build), wanted, options)
            await run.rounds(load)
    about = _about(options, counting=run.counting) + (await _about_builds(build) if build else [])
    groups = {each.name: each.group for each in run.servers}
    pairs = {each.name: f"{each.name}@{build.label}" for each in servers if each.extension} if build else {}
    sys.stdout.write("\n" + tables(run.samples, wanted, groups, run.missing, about, pairs))
    if options.json:
        kept = {"about": about, "began": began, "seconds": time.time() - began, "missing": run.missing}
        kept["against"] = commit
        options.json.write_text(json.dumps({**kept, "samples": [*map(asdict, run.samples)]}, indent=1) + "\n", "utf-8")
    if options.plot:
        options.plot.write_text(plot(run.samples, wanted, groups), "utf-8")
    if build and not {each.server for each in run.samples} & set(pairs.values()):
        raise Failed(f"no server ran with the build of {build.label}; why is said above")
    return 1 if any(each.problems for each in run.samples) or not run.samples else 0


@asynccontextmanager
async def _other_build(
    commit: str | None, servers: list[Server], work: Path, cache: Path
) -> AsyncIterator[Build | None]:
    """The build of *commit* for those of *servers* that run this extension; none if there is no *commit*."""
    packages = sorted({package for each in servers if each.extension for package in each.packages})
    if commit is None:
        yield None
        return
    sys.stderr.write(f"installing commit {await against.short(commit)} in an environment of its own\n")
    async with against.build_of(commit, packages, work, python=await python_with(cache, packages)) as build:
        yield build


class Run:
    """All rounds: what was measured, and what was not for which reason."""

    def __init__(self, units: Sequence[tuple[Server, ...]], wanted: list[Mode], options: argparse.Namespace) -> None:
        self.servers = [server for unit in units for server in unit]
        self.samples: list[Sample] = []
        self.missing: dict[str, str] = {}
        self.counting = False
        self._units, self._modes, self._options = units, wanted, options
        self._progress = Progress(len(self.servers) * options.rounds)

    async def rounds(self, load: Load) -> None:
        """Every server once in each round, beginning with another one each time."""
        self.counting = await counts_instructions()
        for number in range(self._options.rounds):
            for server in against.turns(self._units, number):
                await self._server(server, load, number + 1)
        self._progress.close()
        self.samples = above(self.samples, "rss", {each.name: each.beside for each in self.servers})

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
        servers = chosen(list(names))
    except KeyError as unknown:
        raise Failed(f"there is no server {unknown}; --list says which there are") from None
    if options.against and not any(each.extension for each in servers):
        raise Failed("--against compares builds of this extension, and --only names no server that runs it")
    return servers


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


async def _about_builds(build: Build) -> list[str]:
    differ = f", with other dependencies: {', '.join(build.different)}" if build.different else ""
    return [
        f"ours: commit {await against.short('HEAD')}; …@{build.label}: commit {build.label}{differ}",
        f"of @{build.label}: this build's figure, divided by that build's in the same round",
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
    add("--against", metavar="COMMIT", help="measure the build of that commit, too, and print ratios to it")
    add("--json", type=Path, metavar="FILE", help="write every figure of every round there")
    add("--plot", type=Path, metavar="FILE", help="draw bars there, as SVG")
    add("--cache", type=Path, default=CACHE, metavar="DIR", help=f"where what is built is kept (default: {CACHE})")
    add("--list", action="store_true", help="say which servers and groups there are; run nothing")
    return parser


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
