"""The simulator in a thread, for tests without an event loop of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, Unpack

from anyio.from_thread import BlockingPortal, start_blocking_portal

from quart_openai_sse.simulator import RecordedRequest, Simulator, SimulatorOptions, serve_simulator

T = TypeVar("T")


@dataclass
class ThreadedSimulator(Simulator):
    """A simulator on an event loop in its own thread. Its methods can be awaited on any event loop."""

    portal: BlockingPortal
    """anyio's portal to the simulator's event loop, for threads without one."""

    async def ended(self, number: int = 1) -> RecordedRequest:
        """See `Simulator.ended`."""
        return await asyncio.wrap_future(self.portal.start_task_soon(super().ended, number))

    async def until(self, condition: Callable[[], T]) -> T:
        """See `Counters.until`; *condition* runs on the simulator's event loop."""
        return await asyncio.wrap_future(self.portal.start_task_soon(self.counters.until, condition))


@contextmanager
def simulator_thread(**options: Unpack[SimulatorOptions]) -> Iterator[ThreadedSimulator]:
    """Serves a simulator in its own thread, for synchronous tests and clients that block their event loop.

    At the end of the block its open connections are closed. *options* are those of `create_simulator`.
    """
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve_simulator(**options)) as simulator,
    ):
        yield ThreadedSimulator(simulator.base_url, simulator.counters, portal)
