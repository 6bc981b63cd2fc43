"""What the commands have in common: an address, a log, and an end that cuts no stream silently."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from hypercorn.asyncio import serve

from quart_openai_sse import QuartOpenAISSE
from quart_openai_sse.protocol.trace_context import TraceIdFilter
from quart_openai_sse.simulator import serve_simulator
from quart_openai_sse.simulator.loopback import Listener, ServerConfig

SECONDS_TO_FINISH = 5
"""How long responses may go on after the drain: a page, a download that somebody takes slowly, or not at all."""


@dataclass(frozen=True)
class Site:
    """What a command serves."""

    app: Any
    """An ASGI app."""
    ai: QuartOpenAISSE
    """Whose streams end before it does."""
    welcome: str
    """What is said once it can be reached."""


Create = Callable[[str, str], Site]
"""Given its own address and the simulator's base URL, which is empty where the environment names another upstream."""


def command_line(prog: str, description: str) -> argparse.ArgumentParser:
    """The options that each command has."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="the port; 0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--drain-timeout",
        type=float,
        default=10,
        metavar="SECONDS",
        help="how long running answers may go on after SIGTERM (default: %(default)s)",
    )
    return parser


def run(options: argparse.Namespace, create: Create) -> int:
    """Serves what *create* makes until SIGTERM or SIGINT. 1 if the address can't be had."""
    log_to_stderr()
    try:
        listener = Listener(options.host, options.port)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", error)).rstrip(".")
        sys.stderr.write(f"Can't listen on {options.host} port {options.port}: {reason}. Try --port.\n")
        return 1
    with listener:
        asyncio.run(serve_site(listener, create, options.drain_timeout))
    return 0


def log_to_stderr() -> None:
    """One line for each stream and each response, with its trace id."""
    handler = logging.StreamHandler()
    handler.addFilter(TraceIdFilter())
    form = "%(asctime)s %(levelname)s %(name)s [%(trace_id)s] %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, handlers=[handler])
    for chatty in ("httpx", "quart_openai_sse.loopback"):  # the latter is the servers' own
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _warning(listener: Listener) -> str:
    """What to know about an address that others can reach, if answers cost money."""
    named = [name for name in ("OPENAI_API_KEY", "QUART_OPENAI_SSE_API_KEY") if os.environ.get(name)]
    if not named or ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
        return ""
    return (
        f"Warning: other machines can reach {listener.address}. The passwords of this example are public, and every "
        f"question of a visitor is charged to {named[0]}. Start it without --host, or without the key.\n"
    )


async def serve_site(listener: Listener, create: Create, drain_timeout: float) -> None:
    """Serves until SIGTERM or SIGINT; then lets running answers end, and tells the rest of the shutdown."""
    async with AsyncExitStack() as stack:
        simulator = ""
        if not os.environ.get("OPENAI_API_KEY") and not os.environ.get("OPENAI_BASE_URL"):
            simulator = (await stack.enter_async_context(serve_simulator())).base_url
        site = create(f"http://{listener.address}", simulator)
        signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        # Before the address is printed: a program that waits for it may end this one at once.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)

        async def shutdown() -> None:
            told = await signals.get()
            # The server cuts its connections once this returns: so that no stream is cut silently, drain first.
            # SIGTERM comes from a service manager. Ctrl+C comes from a developer, who waits for the end.
            await site.ai.drain(drain_timeout, grace=None if told == signal.SIGTERM else 0)
            # For a client that reads nothing it would wait for ever.
            asyncio.get_running_loop().call_later(SECONDS_TO_FINISH, listener.hang_up)

        sys.stderr.write("" if simulator else _warning(listener))
        sys.stdout.write(f"{site.welcome}\n")
        if simulator:
            sys.stdout.write("No OPENAI_API_KEY: answers come from the built-in simulator.\n")
        sys.stdout.flush()
        config = ServerConfig(listener)
        config.graceful_timeout = 2 * SECONDS_TO_FINISH  # what is cancelled before it is hung up on logs a traceback
        await serve(site.app, config, shutdown_trigger=shutdown)
