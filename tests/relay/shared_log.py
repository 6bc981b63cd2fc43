"""A stream log in memory that says it is shared, and does what a test asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from quart_openai_sse.errors import ErrorValue, LogUnavailable, ProducerLost
from quart_openai_sse.logs import Batch, End, LostStream
from quart_openai_sse.logs.entries import About
from quart_openai_sse.logs.memory import MemoryLog

LOST = End("failed", "producer_lost", ErrorValue.of(ProducerLost("Its worker died.")))


class SharedLog(MemoryLog):
    """See above. *storing* lets `Writer.stored` return; it raises *error* instead if that is set."""

    shared = True

    def __init__(self) -> None:
        super().__init__()
        self.storing = asyncio.Event()
        self.storing.set()
        self.error: LogUnavailable | None = None
        self.decides = True
        """Whether the end of this process counts."""
        self.decided: list[End] = []
        self.kept: dict[str, bytes] = {}
        """The requests, by the stream's key."""
        self.forgotten: list[str] = []
        self._end_lost: Callable[[LostStream], Awaitable[None]] | None = None

    async def create(self, key: str, **options: Any) -> Any:
        writer = await super().create(key, **options)
        return None if writer is None else _Writer(self, key, writer)

    def on_lost(self, call: Callable[[LostStream], Awaitable[None]]) -> None:
        self._end_lost = call

    async def forget(self, owner: str) -> None:
        self.forgotten.append(owner)

    async def end_lost(
        self, about: About, request: bytes, *batches: Batch, end: End = LOST, attempt: int = 2, fails: bool = False
    ) -> None:
        """Claims a stream of a process that has died."""

        async def stored() -> Any:
            for batch in batches:
                yield batch
            if fails:
                raise LogUnavailable("The store is away.")

        assert self._end_lost is not None
        await self._end_lost(LostStream(about=about, request=request, end=end, attempt=attempt, batches=stored()))


class _Writer:
    """A writer whose stream is stored when the test says so."""

    def __init__(self, log: SharedLog, key: str, writer: Any) -> None:
        self._log = log
        self._key = key
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    async def stored(self) -> None:
        await self._log.storing.wait()
        if self._log.error is not None:
            raise self._log.error

    async def decide(self, end: End) -> bool:
        self._log.decided.append(end)
        return self._log.decides

    def keep(self, request: bytes) -> None:
        self._log.kept[self._key] = request
