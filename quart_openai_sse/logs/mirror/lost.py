"""The streams of processes that have died: this process claims and ends them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs import LostStream, OnLost
from quart_openai_sse.logs.entries import Batch, End
from quart_openai_sse.logs.mirror import State, Store, Write
from quart_openai_sse.logs.mirror.own import LOST
from quart_openai_sse.logs.mirror.wire import Wire
from quart_openai_sse.logs.mirror.writing import Writing

logger = logging.getLogger("quart_openai_sse")

_AT_ONCE = 8  # streams that are ended at the same time
_ATTEMPTS = 3  # processes that call the hooks for one stream, if each of them dies
_PAGE = 256 << 10  # bytes
_SOONEST, _LATEST = 0.1, 2.0  # seconds until a store that could not be reached is tried again


class LostStreams:
    """Ends the streams of dead processes. *new_writer* returns a name for each."""

    def __init__(self, store: Store, wire: Wire, writing: Writing, new_writer: Callable[[], str]) -> None:
        self.on_lost: OnLost | None = None
        self._store = store
        self._wire = wire
        self._writing = writing
        self._new_writer = new_writer

    async def end_all(self, process: str) -> None:
        """Ends what runs of a dead process, and has the store forget it. Raises `LogUnavailable`: not all are ended."""
        keys = list(await self._store.streams_of(process))
        turn = asyncio.Semaphore(_AT_ONCE)

        async def end(key: str) -> None:
            async with turn:
                await self._end(key, process)

        results = await asyncio.gather(*(end(key) for key in keys), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        await self._store.bury(process)

    async def _end(self, key: str, process: str) -> None:
        writer = self._new_writer()
        state = await self._store.claim(key, process, writer)
        if state is None:
            return
        end, _ = self._wire.read_end(state.decided) if state.decided else (LOST, 0)
        logger.warning("stream %s: its process has died, it ends as %s", key.rpartition(":")[2], end.outcome)
        if self.on_lost is not None and state.attempt <= _ATTEMPTS + 1:
            try:
                await self.on_lost(await self._lost(key, state, end))
            except Exception:
                logger.exception("what is to be done for a lost stream failed")
        write = Write(key=key, writer=writer, place=state.count, count=state.count)
        await self._persist(self._writing.with_end(write, end))

    async def _lost(self, key: str, state: State, end: End) -> LostStream:
        request = await self._store.request(key)
        return LostStream(
            about=self._wire.read_about(state.about),
            request=self._wire.read_blob(request) if request else b"",
            end=end,
            attempt=state.attempt,
            batches=self._batches(key, state.count),
        )

    async def _batches(self, key: str, count: int) -> AsyncIterator[Batch]:
        place = 0
        while place < count:
            page = await self._store.load(key, place, _PAGE)
            if page is None or not page.batches:
                raise LogUnavailable("The store has lost entries of the stream.")
            for data in page.batches:
                first, entries = self._wire.read_batch(data)
                entries = entries[max(0, place + 1 - first) :]
                yield Batch(place + 1, entries)
                place += len(entries)

    async def _persist(self, write: Write) -> None:
        wait = _SOONEST
        while True:
            try:
                await self._store.write([write])
            except LogUnavailable:
                await asyncio.sleep(wait)
                wait = min(wait * 2, _LATEST)
            else:
                return
