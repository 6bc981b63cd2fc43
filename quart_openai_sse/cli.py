"""The command line: ``quart-openai-sse`` and its commands."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from typing import TYPE_CHECKING

from quart_openai_sse import simulator

if TYPE_CHECKING:
    from collections.abc import Sequence

DESCRIPTION = "Streaming AI for Quart: the tools that come with the extension."

SIMULATE = """\
Run an OpenAI-compatible server on this machine that needs no key and costs nothing.
Its answers depend on the request alone, so they can be tested; the model's name
chooses how it behaves (sim-fast, sim-slow, sim-long, sim-reasoning, sim-error-429,
sim-delay-2-rate-100 …). Its start page, and /counters as JSON, show which requests
came and how each of them ended.
"""

EXAMPLE = """\
example:
  quart-openai-sse simulate --port 8100

  curl -N http://127.0.0.1:8100/v1/chat/completions \\
    -H 'Content-Type: application/json' \\
    -d '{"model": "sim", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'

  from openai import OpenAI
  client = OpenAI(base_url="http://127.0.0.1:8100/v1", api_key="any")
  messages = [{"role": "user", "content": "Hello"}]
  for chunk in client.chat.completions.create(model="sim", messages=messages, stream=True):
      print(chunk.choices[0].delta.content or "", end="", flush=True)

An app that uses quart-openai-sse takes it as its upstream with
  OPENAI_BASE_URL=http://127.0.0.1:8100/v1 OPENAI_API_KEY=any
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that *argv* names; its exit status. A wrong *argv* exits with 2 and the usage."""
    options = _parser().parse_args(argv)
    status: int = options.run(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quart-openai-sse", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    _add_simulate(commands)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("quart-openai-sse")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _add_simulate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "simulate",
        help="run an OpenAI-compatible server that needs no key",
        description=SIMULATE,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (%(default)s)")
    parser.add_argument("--port", type=_port, default=8100, help="its port, 0 for a free one (%(default)s)")
    parser.add_argument(
        "--first-token-delay",
        type=_amount,
        default=0.3,
        metavar="S",
        help="seconds before the first token (%(default)s)",
    )
    parser.add_argument(
        "--tokens-per-second",
        type=_amount,
        default=40,
        metavar="N",
        help="speed after it, 0 for no pause at all (%(default)s)",
    )
    parser.set_defaults(run=_simulate)


def _simulate(options: argparse.Namespace) -> int:
    try:
        simulator.run(
            host=options.host,
            port=options.port,
            ready=_say,
            first_token_delay=options.first_token_delay,
            tokens_per_second=options.tokens_per_second,
        )
    except OSError as error:
        sys.stderr.write(f"Can't listen on {options.host} port {options.port}: {error.strerror or error}\n")
        return 1
    return 0


def _say(base_url: str) -> None:
    sys.stdout.write(f"The simulator is ready: {base_url} (Ctrl+C stops it)\n")
    sys.stdout.flush()


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 65535")
    return number


def _amount(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 up")
    return number


if __name__ == "__main__":
    sys.exit(main())
