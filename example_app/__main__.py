"""`python -m example_app`: the app on hypercorn, with the simulator behind it where there is no key."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config

from example_app.accounts import DEMO_ACCOUNTS
from example_app.app import create_app
from quart_openai_sse import TraceIdFilter
from quart_openai_sse.simulator import serve_simulator


async def run(listener: socket.socket, drain_timeout: float) -> None:
    """Serves until SIGTERM or SIGINT; then lets running answers end, and tells the rest of the shutdown."""
    async with AsyncExitStack() as stack:
        settings: dict[str, Any] = {}
        if not os.environ.get("OPENAI_API_KEY") and not os.environ.get("OPENAI_BASE_URL"):
            simulator = await stack.enter_async_context(serve_simulator())
            settings = {"SIMULATED": True, "OPENAI_SSE_BASE_URL": simulator.base_url}
        app = create_app(**settings)
        ai = app.extensions["ai"]

        async def shutdown() -> None:
            stop = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            await stop.wait()
            # The server cuts its connections once this returns: so that no stream is cut silently, drain first.
            await ai.drain(drain_timeout)

        config = Config()
        config.bind = [f"fd://{listener.fileno()}"]
        config.loglevel = "WARNING"
        _welcome(*listener.getsockname()[:2], simulated=bool(settings))
        try:
            await serve(app, config, shutdown_trigger=shutdown)
        finally:
            listener.detach()


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _welcome(host: str, port: int, *, simulated: bool) -> None:
    name, password = next(iter(DEMO_ACCOUNTS.items()))
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"Chat: http://{shown}:{port}/ (log in as {name} with the password {password})\n")
    if simulated:
        sys.stdout.write("No OPENAI_API_KEY: answers come from the built-in simulator.\n")
    if os.environ.get("EXAMPLE_TOKEN"):
        sys.stdout.write(f"OpenAI-compatible API: http://{shown}:{port}/v1 with EXAMPLE_TOKEN as the key\n")
    sys.stdout.flush()


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceIdFilter())
    form = "%(asctime)s %(levelname)s %(name)s [%(trace_id)s] %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, handlers=[handler])
    for chatty in ("httpx", "quart_openai_sse.loopback"):  # the latter is the simulator's server
        logging.getLogger(chatty).setLevel(logging.WARNING)


def main() -> int:
    """Reads the command line and serves. 1 if the address can't be had."""
    parser = argparse.ArgumentParser(
        prog="python -m example_app",
        description="A chat app that streams. Honours OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_MODEL; without a key "
        "or an address the built-in simulator answers. EXAMPLE_TOKEN lets API clients in at /v1.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="the port; 0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--drain-timeout",
        type=float,
        default=10,
        metavar="SECONDS",
        help="how long running answers may go on after SIGTERM (default: %(default)s)",
    )
    options = parser.parse_args()
    _log_to_stderr()
    try:
        listener = _listen(options.host, options.port)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", error)).rstrip(".")
        sys.stderr.write(f"Can't listen on {options.host} port {options.port}: {reason}. Try --port.\n")
        return 1
    asyncio.run(run(listener, options.drain_timeout))
    return 0


if __name__ == "__main__":
    sys.exit(main())
