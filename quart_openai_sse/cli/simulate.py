"""`simulate`: runs the simulator on a port."""

from __future__ import annotations

import math

import click

from quart_openai_sse import simulator

HELP = """Run an OpenAI-compatible server on this machine that needs no key and costs nothing.

Equal requests get equal answers, so tests can compare them. The model's name chooses the behaviour (sim-fast,
sim-slow, sim-long, sim-reasoning, sim-error-429, sim-delay-2-rate-100 …). The start page, and /counters as JSON, list
the requests and how each of them ended.
"""

EPILOG = """\b
Examples:
  quart-openai-sse simulate --port 8100

\b
  curl -N http://127.0.0.1:8100/v1/chat/completions \\
    -H 'Content-Type: application/json' \\
    -d '{"model": "sim", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'

\b
  from openai import OpenAI
  client = OpenAI(base_url="http://127.0.0.1:8100/v1", api_key="any")
  messages = [{"role": "user", "content": "Hello"}]
  for chunk in client.chat.completions.create(model="sim", messages=messages, stream=True):
      print(chunk.choices[0].delta.content or "", end="", flush=True)

\b
To use it as the upstream of an app with quart-openai-sse, set
  OPENAI_BASE_URL=http://127.0.0.1:8100/v1 OPENAI_API_KEY=any

\b
Exit codes:
  0  stopped by Ctrl+C or SIGTERM
  1  the address is not available
  2  the command line is invalid
"""


def _finite(_context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter("it must be a finite number", param=parameter)
    return value


@click.command("simulate", help=HELP, epilog=EPILOG, short_help="Run an OpenAI-compatible server that needs no key.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8100,
    show_default=True,
    help="The port to listen on; 0 for a free one.",
)
@click.option(
    "--first-token-delay",
    type=click.FloatRange(min=0),
    default=0.3,
    show_default=True,
    callback=_finite,
    metavar="S",
    help="Seconds until the first token.",
)
@click.option(
    "--tokens-per-second",
    type=click.FloatRange(min=0),
    default=40,
    show_default=True,
    callback=_finite,
    metavar="N",
    help="The speed after the first token; 0 for no pauses.",
)
@click.pass_context
def simulate(
    context: click.Context, *, host: str, port: int, first_token_delay: float, tokens_per_second: float
) -> None:
    """Runs the simulator until SIGINT or SIGTERM."""
    try:
        simulator.run(
            host=host,
            port=port,
            ready=lambda base_url: click.echo(f"The simulator is ready: {base_url} (Ctrl+C stops it)"),
            first_token_delay=first_token_delay,
            tokens_per_second=tokens_per_second,
        )
    except OSError as error:
        click.echo(f"Can't listen on {host} port {port}: {error.strerror or error}", err=True)
        context.exit(1)
