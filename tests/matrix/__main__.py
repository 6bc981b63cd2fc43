"""The command: `python -m tests.matrix`."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.matrix.environments import Failed
from tests.matrix.plan import CHECKS, CLIENTS, KNOWN, QUARTS, SERVERS, UPSTREAM_CLIENTS, WAYS, WITHOUT_CLIENT
from tests.matrix.run import Run
from tests.matrix.servers import nginx

DESCRIPTION = "Proves that servers and clients work with the extension unchanged, and prints a table of it."

EPILOG = """\
Every server of docs/how-to/deploy.md is started by the command of that page, in an environment of its own for each
Python and Quart, in front of a simulator of OpenAI's API: by itself, behind nginx, and behind nginx below /ai. Then
every client makes every check it can against it, in an environment of its own with pinned versions. Two columns need
no client: "drain" tells the server to stop, and watches what becomes of its streams; "flask" serves a Flask app by
`mount`, and uploads to it.

It needs nginx, node with npm, curl and Chromium, and what .[test] installs. Environments are kept in --cache; the
first run installs about ten of them.

Examples:
  python -m tests.matrix --quick                           with this Python, httpx upstream, no nginx
  python -m tests.matrix --server uvicorn --client curl    one pair
  python -m tests.matrix --cache ~/.cache/matrix --python python3.11 --python python3.13

The last line is "N passed, N failed", counting checks.

Exit codes:
  0  every check passed, or failed for a reason that is known (--list tells them)
  1  a check failed, or one passed that is said to fail
  2  it could not be run
"""


def main() -> int:
    """Reads the command line and runs it."""
    options = _parser().parse_args()
    if options.list:
        sys.stdout.write("\n".join(_listed()) + "\n")
        return 0
    try:
        _check_programs(options)
        with tempfile.TemporaryDirectory(prefix="matrix-") as work:
            return 1 if asyncio.run(_run(Run(options, Path(work)))) else 0
    except Failed as error:
        sys.stderr.write(f"It can't be run: {error}\n")
        return 2
    except asyncio.CancelledError:
        return 130


async def _run(run: Run) -> int:
    """Runs it; a signal cancels it, so that whatever it has started is ended."""
    running = asyncio.ensure_future(run.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, lambda: running.cancelling() or running.cancel())
    return await running


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.matrix",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*(client.name for client in CLIENTS), *WITHOUT_CLIENT]
    add = parser.add_argument
    add("--python", action="append", metavar="PATH", help="an interpreter for servers; again for more (default: this)")
    add("--server", action="append", choices=list(SERVERS), help="only this server; again for more (default: all)")
    add("--client", action="append", choices=names, help="only this client; again for more (default: all)")
    add("--cache", type=Path, metavar="DIR", help="where environments are kept (default: a temporary folder)")
    add("--newest", action="store_true", help="with each Python only the newest Quart that it can have")
    add("--quick", action="store_true", help="one client upstream and no nginx")
    add("--list", action="store_true", help="say what there is, and what is known not to work; run nothing")
    return parser


def _check_programs(options: argparse.Namespace) -> None:
    asked = options.client or [client.name for client in CLIENTS]
    for client in CLIENTS:
        if client.name in asked and client.programs and not any(map(shutil.which, client.programs)):
            raise Failed(f"{client.name} needs {' or '.join(client.programs)}")
    if not options.quick and not nginx():
        raise Failed("nginx is not found")


def _listed() -> list[str]:
    lines = [
        "Servers: " + ", ".join(SERVERS),
        *(f"  {way:10} {meaning}" for way, meaning in WAYS.items()),
        "Clients upstream: " + ", ".join(UPSTREAM_CLIENTS),
        "Quart: " + ", ".join(f"{quart} from Python {'.'.join(map(str, low))}" for quart, low in QUARTS.items()),
        "Checks:",
        *(f"  {check:7} {meaning}" for check, meaning in CHECKS.items()),
        "Clients:",
    ]
    for client in CLIENTS:
        lines.append(f"  {client.name:17} {', '.join(client.checks)}")
        lines += [f"  {'':17} not {check}: {why}" for check, why in client.without]
    known = [f"  {each.check} {each.client} {each.server} {each.way}: {each.why}" for each in KNOWN]
    return [*lines, "Known not to work:", *(known or ["  nothing"])]


if __name__ == "__main__":
    sys.exit(main())
