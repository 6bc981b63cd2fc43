"""`openapi`: writes the OpenAPI document of the routes, for generated clients and API browsers."""

from __future__ import annotations

import json

import click

from quart_openai_sse.web.blueprint import ROUTES
from quart_openai_sse.web.openapi import openapi_document

HELP = """Write the routes as an OpenAPI 3.1 document, in JSON, to the output.

It says what the extension answers: requests, responses, every status and error code. What an app's own hooks refuse
with is not in it.
"""

EPILOG = """\b
Examples:
  quart-openai-sse openapi > openapi.json
  quart-openai-sse openapi --url-prefix /api/ai --routes chat,streams

\b
Exit codes:
  0  written
  2  the command line is wrong
"""


def _groups(_context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    groups = [name.strip() for name in value.split(",") if name.strip()]
    if unknown := [name for name in groups if name not in ROUTES]:
        raise click.BadParameter(f"there is no group {unknown[0]}", param=parameter)
    return groups


@click.command("openapi", help=HELP, epilog=EPILOG, short_help="Write the routes as an OpenAPI document.")
@click.option("--url-prefix", default="/v1", show_default=True, metavar="PATH", help="Where the routes are.")
@click.option(
    "--routes",
    default=",".join(ROUTES),
    show_default=True,
    callback=_groups,
    metavar="GROUPS",
    help="The groups of routes, with commas.",
)
def openapi(*, url_prefix: str, routes: list[str]) -> None:
    """Writes the document."""
    click.echo(json.dumps(openapi_document(url_prefix=url_prefix, routes=routes), indent=2))
