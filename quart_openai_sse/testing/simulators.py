"""The simulator in a thread, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, Unpack

from anyio.from_thread import BlockingPortal, start_blocking_portal

from quart_openai_sse.simulator import Exchange, Simulator, SimulatorOptions, serve_simulator

T = TypeVar("T")


@dataclass
class ThreadedSimulator(Simulator):
    """A simulator on an event loop in a thread of its own, to be asked from any loop, or from none."""

    portal: BlockingPortal
    """Its event loop, as anyio reaches it from elsewhere."""

    async def ended(self, number: int = 1) -> Exchange:
        """See `Simulator.ended`."""
        return await asyncio.wrap_future(self.portal.start_task_soon(super().ended, number))

    async def until(self, condition: Callable[[], T]) -> T:
        """See `Counters.until`, which belongs to the simulator's own loop."""
        return await asyncio.wrap_future(self.portal.start_task_soon(self.counters.until, condition))


@contextmanager
def simulator_thread(**options: Unpack[SimulatorOptions]) -> Iterator[ThreadedSimulator]:
    """The simulator in a thread of its own: for tests without an event loop, and clients that block theirs."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve_simulator(**options)) as simulator,
    ):
        yield ThreadedSimulator(simulator.base_url, simulator.counters, portal)
