"""The commands: `python -m tests.chaos` prints the matrix; each of the others another table."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from tests.chaos import (
    clients,
    failover,
    held,
    hooks,
    leaks,
    libraries,
    matrix,
    readers,
    recipes,
    refusals,
    refused,
    soak,
)
from tests.chaos.shared import roaming, table

BUILDS = {
    "held": "memory that failed requests with large prompts leave behind",
    "readers": "readers that never read, and the memory that they take",
    "hooks": "hooks that hang, and the streams beside them",
    "libraries": "app models over libraries whose stream a transform stops; it installs the libraries",
    "recipes": "the recipes of the page about agent libraries, whose answers break; it installs the libraries",
    "refused": "app models over libraries whose provider refuses them; it installs the libraries",
}
"""The commands that measure several builds."""
PACKAGE = "a checkout whose package is measured, instead of this one; several are printed side by side"


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("matrix", help="every fault in every window (the default)")
    commands.add_parser("clients", help="clients that misbehave")
    commands.add_parser("refusals", help="every status with every form of Retry-After")
    commands.add_parser("failover", help="three upstreams, none of them sound, and three that refuse")
    many = commands.add_parser("leaks", help="many mixed faulty streams, and what is left of them")
    many.add_argument("--streams", type=int, default=10_000)
    long = commands.add_parser("soak", help="a steady load, and the memory of the app meanwhile")
    long.add_argument("--minutes", type=float, default=20)
    long.add_argument("--streams", type=int, default=200)
    for name, text in BUILDS.items():
        builds = commands.add_parser(name, help=text)
        builds.add_argument("--package", type=Path, action="append", default=[], metavar="PATH", help=PACKAGE)
        if name in ("libraries", "recipes", "refused"):
            builds.add_argument("--cache", type=Path, help="a folder in which the libraries stay installed")
    shared = commands.add_parser("shared", help="faults of a store that two workers share, and of these workers")
    shared.add_argument("--only", default="", metavar="TEXT", help="the rows whose names contain it")
    roams = commands.add_parser("roaming", help="clients that go from worker to worker, while workers and store fail")
    roams.add_argument("--minutes", type=float, default=10)
    roams.add_argument("--streams", type=int, default=200, help="how many run at once")
    roams.add_argument("--store", choices=list(roaming.STORES), default="redis")
    roams.add_argument("--seed", type=int, default=1, help="from which everything random comes")
    roams.add_argument("--keep", type=Path, metavar="FOLDER", help="where the workers' stderr stays")
    commands.add_parser("serve", help="the soak's app").add_argument("upstreams")
    return parser


async def main(options: argparse.Namespace) -> bool:
    """Prints what was asked for; whether all of it is as it should be."""
    write = sys.stdout.write
    if options.command in BUILDS:
        return await _measure(options)
    match options.command:
        case "clients":
            return await clients.run(write)
        case "refusals":
            return await refusals.run(write)
        case "failover":
            return await failover.run(write)
        case "leaks":
            return await leaks.run(write, streams=options.streams)
        case "soak":
            return await soak.run(write, minutes=options.minutes, streams=options.streams)
        case "shared":
            return await table.run(write, only=options.only)
        case "roaming":
            chosen = {name: getattr(options, name) for name in ("minutes", "streams", "store", "seed", "keep")}
            return await roaming.run(write, **chosen)
        case "serve":
            await soak.serve(options.upstreams)
            return True
        case _:
            return await matrix.run(write)


async def _measure(options: argparse.Namespace) -> bool:
    """Prints the table of several builds that was asked for."""
    write = sys.stdout.write
    match options.command:
        case "held":
            return await held.run(write, options.package)
        case "readers":
            return await readers.run(write, options.package)
        case "hooks":
            return await hooks.run(write, options.package)
        case "recipes":
            return await recipes.run(write, options.package, cache=options.cache)
        case "refused":
            return await refused.run(write, options.package, cache=options.cache)
        case _:
            return await libraries.run(write, options.package, cache=options.cache)


if __name__ == "__main__":
    for name in ("quart_openai_sse", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the tables say it
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(not asyncio.run(main(parser().parse_args())))
