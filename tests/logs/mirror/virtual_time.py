"""An event loop whose time passes when there is nothing else to do: waiting takes no time, and repeats exactly."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
MOST_TURNS = 3_000


class _Selector(selectors.SelectSelector):
    """Lets the loop's time pass instead of waiting."""

    loop: VirtualTimeLoop
    turns = 0
    """Turns of the loop since its time passed."""

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if timeout is None:
            raise RuntimeError("Every task waits, and nothing will wake them.")
        self.turns = 0 if timeout else self.turns + 1
        if self.turns > MOST_TURNS:
            self.turns = 0
            raise RuntimeError(f"The loop turns, and no time passes: {asyncio.all_tasks(self.loop)}")
        self.loop.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop for code that uses no socket and no thread."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = 0.0
        super().__init__(selector)

    def time(self) -> float:
        """See `asyncio.AbstractEventLoop.time`."""
        return self.now


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs *coroutine* as `asyncio.run` does, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)
