"""`openapi`: prints the routes as an OpenAPI document, for client generators and API viewers."""

from __future__ import annotations

import json

import click

from quart_openai_sse.web.blueprint import ROUTES
from quart_openai_sse.web.openapi import openapi_document

HELP = """Print the routes as an OpenAPI 3.1 document, in JSON.

The document describes the extension's requests and responses, with every status and error code. Errors that an app's
own hooks raise are not included.
"""

EPILOG = """\b
Examples:
  quart-openai-sse openapi > openapi.json
  quart-openai-sse openapi --url-prefix /api/ai --routes chat,streams

\b
Exit codes:
  0  success
  2  the command line is invalid
"""


def _groups(_context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    groups = [name.strip() for name in value.split(",") if name.strip()]
    if unknown := [name for name in groups if name not in ROUTES]:
        raise click.BadParameter(f"there is no group {unknown[0]}", param=parameter)
    return groups


@click.command("openapi", help=HELP, epilog=EPILOG, short_help="Print the routes as an OpenAPI document.")
@click.option("--url-prefix", default="/v1", show_default=True, metavar="PATH", help="The URL prefix of the routes.")
@click.option(
    "--routes",
    default=",".join(ROUTES),
    show_default=True,
    callback=_groups,
    metavar="GROUPS",
    help="The groups of routes, separated by commas.",
)
def openapi(*, url_prefix: str, routes: list[str]) -> None:
    """Prints the document."""
    click.echo(json.dumps(openapi_document(url_prefix=url_prefix, routes=routes), indent=2))
