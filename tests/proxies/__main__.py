"""Runs an app behind real proxies, and compares what is seen with what is expected."""

from __future__ import annotations

import argparse
import asyncio
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import tests.proxies
from tests.matrix.environments import Failed
from tests.matrix.page import PAGE, read_page
from tests.proxies.checks import check
from tests.proxies.report import Seen, differences, table
from tests.proxies.ways import PROGRAMS, Way, program, ways


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.proxies",
        description=f"{tests.proxies.__doc__}\nExits with 1 if anything is not as expected.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=PROGRAMS, help="run this proxy; may be repeated")
    return parser


async def main(options: argparse.Namespace) -> bool:
    """Prints the table. Returns whether all of it is as expected."""
    chosen = [way for way in ways() if not options.only or way.program in options.only]
    for name in dict.fromkeys(way.program for way in chosen):
        sys.stdout.write(f"{name}: {_version(name)}\n")
    page = read_page(PAGE.read_text("utf-8"))
    rows: dict[str, Seen] = {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        for way in chosen:
            try:
                rows[str(way)] = seen = await check(way, page, Path(work))
            except Exception as error:
                wrong.append(f"{way}: {type(error).__name__}: {error}")
            else:
                wrong += differences(str(way), seen, way.expected)
    sys.stdout.writelines(f"{line}\n" for line in [*table(rows), *wrong, _verdict(chosen, wrong)])
    return not wrong


def _verdict(chosen: list[Way], wrong: list[str]) -> str:
    return f"{len(chosen)} ways, {len(wrong)} differences"


def _version(name: str) -> str:
    done = subprocess.run([program(name), PROGRAMS[name]], capture_output=True, text=True, check=True)
    return (done.stdout or done.stderr).splitlines()[0]


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    try:
        sys.exit(not asyncio.run(main(parser().parse_args())))
    except Failed as error:
        sys.exit(str(error))
