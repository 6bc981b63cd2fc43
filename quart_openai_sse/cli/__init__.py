"""The command line: `quart-openai-sse` and its commands, which are also available as `quart openai-sse`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import NoReturn

import click

from quart_openai_sse.cli.chat import chat
from quart_openai_sse.cli.check import check
from quart_openai_sse.cli.openapi import openapi
from quart_openai_sse.cli.simulate import simulate

HELP = """Streaming AI for Quart: the command-line tools of the extension.

Without an API key, start the simulator and chat with it:

\b
  quart-openai-sse simulate
  quart-openai-sse chat --base-url http://127.0.0.1:8100/v1

The same commands are available as "quart openai-sse …". There they use the configuration of the app that Quart finds
(--app, QUART_APP, or app.py in the current directory); if it finds none, the environment.
"""

EPILOG = """\b
Exit codes of all commands:
  0  success
  1  failure; the output gives the reason
  2  the command line or the configuration is invalid
  3  check only: it works, with warnings
  130  interrupted by Ctrl+C
"""


def _show_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        try:
            version = importlib.metadata.version("quart-openai-sse")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        click.echo(f"quart-openai-sse {version}")
        context.exit()


@click.group("openai-sse", help=HELP, epilog=EPILOG, short_help="Check an upstream, chat with it or simulate one.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def commands() -> None:
    """The group of all commands, for `quart` and for `quart-openai-sse`."""


for _command in (check, chat, openapi, simulate):
    commands.add_command(_command)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line *argv* (default: the process's arguments) and exits with the command's status."""
    commands.main(args=argv, prog_name="quart-openai-sse")
