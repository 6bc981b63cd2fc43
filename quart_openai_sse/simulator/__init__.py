"""The simulator: an OpenAI-compatible server that needs no key and always answers the same.

Develop and test against it: point any OpenAI client at its *base_url*. Its answers depend on the request alone;
only ``id`` and ``created`` vary. The **model's name** chooses the behaviour; every other name is accepted too:

====================================  =================================================================
``sim``                               the speed of the options
``sim-fast``, ``sim-slow``            no pause at all; the first token after 2 s, then 5 tokens per second
``sim-long``                          4,000 tokens, for trying stop and resume
``sim-reasoning``                     ``reasoning_content`` first, as does any name with ``reasoning`` in it
``sim-delay-2-rate-100``              the first token 2 s after the headers, then 100 tokens per second
``sim-head-1.5``                      silence for 1.5 s before the status line
``sim-length-250``                    exactly 250 tokens
``sim-error-429``                     this status with an error as OpenAI shapes it
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
from quart_openai_sse.simulator.counters import Counters, Exchange
from quart_openai_sse.simulator.loopback import serve_app
from quart_openai_sse.simulator.routes import create_simulator

__all__ = [
    "MODELS",
    "PARAGRAPHS",
    "Counters",
    "Exchange",
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
    """A running simulator: where it is, and what reached it."""

    base_url: str
    """What an OpenAI client takes as its ``base_url``: ``http://127.0.0.1:54321/v1``."""
    counters: Counters

    async def ended(self, number: int = 1) -> Exchange:
        """Request *number* (they count from 1) as soon as it is no longer running. Bound it by a timeout."""

        def ended() -> list[Exchange]:
            return [e for e in self.counters.exchanges if e.number == number and e.outcome != "running"]

        return (await self.counters.until(ended))[0]


@contextlib.asynccontextmanager
async def serve_simulator(
    *, host: str = "127.0.0.1", port: int = 0, **options: Unpack[SimulatorOptions]
) -> AsyncIterator[Simulator]:
    """A simulator on a socket of this event loop: on a free *port*, unless you name one.

    Leaving the block hangs up on every open connection, so that a stream in flight is cut and nothing goes on.
    Raises `OSError` if the address can't be had.
    """
    app = create_simulator(**options)
    counters: Counters = app.extensions["simulator"]
    # What is cut now was cut here: a connection that was leaked must not pass for a client that left.
    async with serve_app(app, host=host, port=port, leaving=counters.hang_up) as address:
        yield Simulator(f"http://{address}/v1", counters)


def run(
    *, host: str, port: int, ready: Callable[[str], object] = logger.info, **options: Unpack[SimulatorOptions]
) -> None:
    """Serve until SIGINT or SIGTERM; *ready* is called with the base URL once requests are taken."""

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows: KeyboardInterrupt does it
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with serve_simulator(host=host, port=port, **options) as simulator:
            ready(simulator.base_url)
            await stop.wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
