"""The command line: `quart-openai-sse` and its commands, which are those of `quart openai-sse` too."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import NoReturn

import click

from quart_openai_sse.cli.chat import chat
from quart_openai_sse.cli.check import check
from quart_openai_sse.cli.openapi import openapi
from quart_openai_sse.cli.simulate import simulate

HELP = """Streaming AI for Quart: the tools that come with the extension.

With no key at hand, start a server that needs none, and talk to it:

\b
  quart-openai-sse simulate
  quart-openai-sse chat --base-url http://127.0.0.1:8100/v1

The same commands are there as "quart openai-sse …". They use the configuration of the app that Quart finds (its
--app, QUART_APP, or an app.py in the current directory), and the environment where there is none.
"""

EPILOG = """\b
Exit codes, of every command:
  0  fine
  1  it did not work, and the output says why
  2  the command line or the configuration is wrong
  3  check: it works, with warnings
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


@click.group("openai-sse", help=HELP, epilog=EPILOG, short_help="Check, chat with or simulate an upstream.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def commands() -> None:
    """All commands, for `quart` as for `quart-openai-sse`."""


for _command in (check, chat, openapi, simulate):
    commands.add_command(_command)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command that *argv* names, and exits with its status."""
    commands.main(args=argv, prog_name="quart-openai-sse")
