"""The faults of one process in front of its store: no connection, missed messages, a frozen process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs.mirror import Hear

Fault = Literal["", "before", "after"]
P = ParamSpec("P")
T = TypeVar("T")
ProcessT = TypeVar("ProcessT", bound="FaultyProcess")


class FaultyProcess:
    """What a store is without the methods of `Store`. The switches are described in `memory_store`."""

    _hear: Hear
    _again: Callable[[], object]

    def __init__(self) -> None:
        self.process = ""
        self.calls: list[tuple[str, str]] = []
        self.is_open = False
        self.followed: set[str] = set()
        self.down: Fault = ""
        self.faults: deque[Fault] = deque()
        self.deaf = False
        self.thawed = asyncio.Event()
        self.thawed.set()
        self._missing = 0
        self._held: list[tuple[str, bytes]] = []

    async def network(self) -> None:
        """What is waited for before and after each call."""
        await asyncio.sleep(0)

    def disconnect(self, *, applied: bool = False) -> None:
        """Cuts the connection. With *applied* calls reach the memory, and their answers are lost."""
        self.down, self.deaf = "after" if applied else "before", True

    def connect(self) -> None:
        """Ends `disconnect` and `deaf`, and calls `again`."""
        self.down, self.deaf, self._missing = "", False, 0
        if self.is_open:
            asyncio.get_running_loop().call_soon(lambda: self._again())

    def miss(self, count: int) -> None:
        """Loses the next *count* messages."""
        self._missing = count

    def freeze(self) -> None:
        """Stops the process."""
        self.thawed.clear()

    def thaw(self) -> None:
        """Lets the process go on."""
        self.thawed.set()
        held, self._held = self._held, []
        for key, message in held:
            self.deliver(key, message)

    def deliver(self, key: str, message: bytes) -> None:
        """Has `hear` called with a message soon, if it arrives."""
        if self._missing or self.deaf:
            self._missing = max(0, self._missing - 1)
        elif not self.thawed.is_set():
            self._held.append((key, message))
        else:
            asyncio.get_running_loop().call_soon(self._receive, key, message)

    def _receive(self, key: str, message: bytes) -> None:
        if not self.thawed.is_set():
            self._held.append((key, message))
        elif self.is_open and not self.deaf and (not key or key in self.followed):
            self._hear(key, message)


def remote(
    method: Callable[Concatenate[ProcessT, P], Awaitable[T]],
) -> Callable[Concatenate[ProcessT, P], Coroutine[Any, Any, T]]:
    """Lets a method cross the network, with its faults."""

    async def call(self: ProcessT, /, *args: P.args, **options: P.kwargs) -> T:
        self.calls.append((self.process, method.__name__))
        fault = self.faults.popleft() if self.faults else self.down
        await self.network()
        await self.thawed.wait()
        if fault == "before" or self.down == "before":
            raise LogUnavailable("The test's store cannot be reached.")
        result = await method(self, *args, **options)
        await self.network()
        await self.thawed.wait()
        if fault or self.down:
            raise LogUnavailable("The test's store cannot be reached any more.")
        return result

    return call
