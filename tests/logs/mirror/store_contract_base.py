"""What the contract of a store stands on: two processes of one store, and what they hear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from quart_openai_sse.logs.mirror import NewStream, Store, Write
from quart_openai_sse.logs.mirror.wire import END, HEADER

ANN, BOB = "a" * 16, "b" * 16
"""Two processes."""


class Process:
    """A process that uses the store, and what it has heard."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name
        self.heard: list[tuple[str, bytes]] = []
        self.again = 0
        self._changed = asyncio.Event()

    async def open(self) -> None:
        """Connects the process."""
        await self.store.open(self.name, self._hear, self._again)

    async def hears(self, *expected: tuple[str, bytes]) -> None:
        """Waits for as many messages as *expected*, compares them, and forgets them."""
        await self.until(lambda: len(self.heard) >= len(expected))
        assert self.heard == list(expected), f"heard: {self.heard}"
        self.heard.clear()

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits for a message after which *condition* holds."""
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def _hear(self, key: str, message: bytes) -> None:
        self.heard.append((key, message))
        self._changed.set()

    def _again(self) -> None:
        self.again += 1
        self._changed.set()


class StoreContractBase:
    """What a class of tests defines: see `StoreContract`."""

    unreachable: Callable[[Any], AbstractAsyncContextManager[None]] | None = None
    cut: Callable[[Any], Any] | None = None
    forget: Callable[[Any], Any] | None = None

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("A class that inherits the contract defines the fixture `store`.")

    def other(self, store: Any) -> Store:
        raise NotImplementedError("A class that inherits the contract defines `other`.")

    async def pass_time(self, store: Any, seconds: float) -> None:
        """Lets *seconds* pass for the store. A store whose clock a test can set overrides it."""
        await asyncio.sleep(seconds)

    @pytest.fixture
    async def ann(self, store: Store) -> AsyncIterator[Process]:
        process = Process(store, ANN)
        await process.open()
        yield process
        await store.aclose()

    @pytest.fixture
    async def bob(self, store: Store) -> AsyncIterator[Process]:
        process = Process(self.other(store), BOB)
        await process.open()
        yield process
        await process.store.aclose()


def batch(first: int, *entries: bytes) -> bytes:
    """A batch that begins with the entry whose place is *first*, the first of all being 1."""
    return HEADER.pack(first, len(entries), 0) + b"".join(entries)


def end(text: bytes = b"") -> bytes:
    return END + text


def stream(writer: str = f"{ANN}.1", **members: Any) -> NewStream:
    """A new stream, as `Store.create` wants it."""
    defaults: dict[str, Any] = {"digest": "d", "about": b"about", "owner": "", "created": 1.0, "life": 60.0}
    return NewStream(writer=writer, **{**defaults, **members})


def write(place: int, count: int, key: str = "k", writer: str = f"{ANN}.1", **members: Any) -> Write:
    """A write with a batch of the entries from *place* to *count*, if there are any."""
    if count > place:
        members.setdefault("batch", batch(place + 1, *(b"%d," % n for n in range(place + 1, count + 1))))
    if "end" in members:
        members = {"retention": 60.0, "tombstone": 60.0, **members}
    return Write(key=key, writer=writer, place=place, count=count, **members)
