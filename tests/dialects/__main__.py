"""Sends samples of what model servers stream through the product, and compares how each way reads them."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from tests.dialects import cases, run
from tests.dialects.sample import KINDS, Sample
from tests.dialects.samples import SAMPLES


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    kinds = "\n".join(f"  {kind:12}{meaning}" for kind, meaning in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.dialects",
        description=f"{__doc__}\nExits with 1 if any way is wrong.",
        epilog=f"kinds of samples:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KIND|NAME",
        help="run this kind, or samples with this in their name",
    )
    parser.add_argument("--cases", type=Path, metavar="PATH", help="also run the files in this folder of cases")
    parser.add_argument("--all", action="store_true", help="print all differences of a sample, not only the first")
    parser.add_argument(
        "--sdk",
        action="store_true",
        help="also read them with OpenAI's SDK for JavaScript and the AI SDK; needs Node and npm",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="PATH", help="a folder in which the packages of npm stay installed"
    )
    parser.add_argument("--list", action="store_true", help="print the samples' names, and run nothing")
    return parser


def chosen(options: argparse.Namespace) -> list[Sample]:
    """The samples that were asked for."""
    samples = [*SAMPLES, *(cases.load(options.cases) if options.cases else ())]
    if not options.only:
        return samples
    return [
        sample
        for sample in samples
        if any(only == sample.kind or (only not in KINDS and only in sample.name) for only in options.only)
    ]


async def main(options: argparse.Namespace) -> bool:
    """Prints what was asked for. Returns whether all of it is as it should be."""
    try:
        samples = chosen(options)
    except (OSError, cases.UnknownCases) as error:
        sys.stderr.write(f"{error}\n")
        return False
    if not samples:
        sys.stderr.write(f"No sample is of a kind, or has a name, like {' or '.join(options.only)}.\n")
        return False
    if options.list:
        for sample in samples:
            sys.stdout.write(f"{sample.kind:12}{sample.name}\n")
        return True
    with tempfile.TemporaryDirectory() as folder:
        node_cache = (options.cache or Path(folder)) if options.sdk else None
        return await run.run(sys.stdout.write, samples, every=options.all, node_cache=node_cache)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(not asyncio.run(main(parser().parse_args())))
