"""The simulator: an OpenAI-compatible server for development and tests, which needs no key.

Point any OpenAI client at its *base_url*. Equal requests get equal answers; only ``id`` and ``created`` vary. The
**model's name** chooses the behaviour; every other name is accepted too:

====================================  =================================================================
``sim``                               the speed that the options set
``sim-fast``, ``sim-slow``            no pauses; the first token after 2 s, then 5 tokens per second
``sim-long``                          4,000 tokens, to try stop and resume
``sim-reasoning``                     ``reasoning_content`` first, like every name that contains ``reasoning``
``sim-delay-2-rate-100``              the first token 2 s after the headers, then 100 tokens per second
``sim-head-1.5``                      nothing for 1.5 s, then the status line
``sim-length-250``                    exactly 250 tokens
``sim-error-429``                     this status, with an error in OpenAI's format
``missing-…``                         404, ``model_not_found``
====================================  =================================================================

The parts combine: ``sim-long-rate-0``, ``sim-reasoning-head-1-delay-0``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypedDict, Unpack

from quart_openai_sse.simulator.answers import PARAGRAPHS, answer, pieces
from quart_openai_sse.simulator.behaviour import MODELS
from quart_openai_sse.simulator.counters import Counters, RecordedRequest
from quart_openai_sse.simulator.loopback import serve_app
from quart_openai_sse.simulator.routes import create_simulator

__all__ = [
    "MODELS",
    "PARAGRAPHS",
    "Counters",
    "RecordedRequest",
    "Simulator",
    "SimulatorOptions",
    "answer",
    "create_simulator",
    "pieces",
    "run",
    "serve_simulator",
]

logger = logging.getLogger(__name__)


class SimulatorOptions(TypedDict, total=False):
    """The options of `create_simulator`, for the functions that pass them on."""

    first_token_delay: float
    tokens_per_second: float
    api_key: str


@dataclass
class Simulator:
    """A running simulator."""

    base_url: str
    """The ``base_url`` for an OpenAI client: ``http://127.0.0.1:54321/v1``."""
    counters: Counters
    """The requests that the simulator received."""

    async def ended(self, number: int = 1) -> RecordedRequest:
        """Waits until request *number*, counted from 1, has ended, and returns it. Use a timeout around it."""

        def ended() -> list[RecordedRequest]:
            return [each for each in self.counters.requests if each.number == number and each.outcome != "running"]

        return (await self.counters.until(ended))[0]


@contextlib.asynccontextmanager
async def serve_simulator(
    *, host: str = "127.0.0.1", port: int = 0, **options: Unpack[SimulatorOptions]
) -> AsyncIterator[Simulator]:
    """Serves a simulator on the running event loop; *port* 0 is a free port.

    At the end of the block every open connection is closed, so running streams are cut. Raises `OSError` if the
    address is not available. *options* are those of `create_simulator`.
    """
    app = create_simulator(**options)
    counters: Counters = app.extensions["simulator"]
    # From the block's end on, a cut connection counts as closed by the server: a leaked one must not look like a
    # client that disconnected.
    async with serve_app(app, host=host, port=port, on_exit=counters.shut_down) as address:
        yield Simulator(f"http://{address}/v1", counters)


def run(
    *, host: str, port: int, ready: Callable[[str], object] = logger.info, **options: Unpack[SimulatorOptions]
) -> None:
    """Serves until SIGINT or SIGTERM. Calls *ready* with the base URL when the server accepts requests.

    Raises `OSError` if the address is not available.
    """

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # on Windows, KeyboardInterrupt ends the server
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with serve_simulator(host=host, port=port, **options) as simulator:
            ready(simulator.base_url)
            await stop.wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
