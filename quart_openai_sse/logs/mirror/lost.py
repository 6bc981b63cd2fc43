"""The streams of processes that have died: this process claims and ends them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from quart_openai_sse.errors import LogUnavailable, StreamNotFound
from quart_openai_sse.logs import LostStream, OnLost
from quart_openai_sse.logs.entries import Batch, End
from quart_openai_sse.logs.mirror import State, Store, Write
from quart_openai_sse.logs.mirror.again import LATEST, SOONEST, Spawn, until_answered
from quart_openai_sse.logs.mirror.own import LOST
from quart_openai_sse.logs.mirror.wire import Wire
from quart_openai_sse.logs.mirror.writes import Writes

logger = logging.getLogger("quart_openai_sse")

_AT_ONCE = 8  # streams that are ended at the same time
_ATTEMPTS = 3  # processes that call the hooks for one stream, if each of them dies
_PATIENCE = 60.0  # seconds in which a stream whose hooks need the store is handed over again
_PAGE = 256 << 10  # bytes


class LostStreams:
    """Ends the streams of dead processes, in tasks made by *spawn*. *new_writer* returns a name for each stream.

    A stream that this process has claimed is its own from then on: if it closes or dies before it has written the end,
    another process takes it over.
    """

    def __init__(
        self, store: Store, wire: Wire, writes: Writes, *, new_writer: Callable[[], str], spawn: Spawn
    ) -> None:
        self.on_lost: OnLost | None = None
        self._store = store
        self._wire = wire
        self._writes = writes
        self._new_writer = new_writer
        self._spawn = spawn
        self._ending: set[str] = set()

    def end_all(self, process: str) -> None:
        """Ends what runs of a dead process, and has the store forget it. To be called until the store has."""
        if process not in self._ending:
            self._ending.add(process)
            self._spawn(self._end_all(process))

    async def _end_all(self, process: str) -> None:
        turn = asyncio.Semaphore(_AT_ONCE)

        async def end(key: str) -> bool:
            async with turn:
                try:
                    await self._end(key, process)
                except Exception:
                    logger.exception("a stream of a process that has died could not be ended")
                    return False
                return True

        try:
            keys = await self._store.streams_of(process)
            if all(await asyncio.gather(*(end(key) for key in keys))):
                await self._store.bury(process)
        finally:
            self._ending.discard(process)

    async def _end(self, key: str, process: str) -> None:
        writer = self._new_writer()
        # It may have been claimed although the answer was lost: with the same writer the answer is the same.
        state = await until_answered(lambda: self._store.claim(key, process, writer))
        if state is None:
            return
        end = self._decided(state)
        logger.warning("stream %s: its process has died; it ends as %s", key.rpartition(":")[2], end.outcome)
        if self.on_lost is not None and state.attempt <= _ATTEMPTS + 1:
            await self._hand_over(self.on_lost, key, state, end)
        write = self._writes.with_end(Write(key=key, writer=writer, place=state.count, count=state.count), end)
        await until_answered(lambda: self._store.write([write]))

    def _decided(self, state: State) -> End:
        try:
            return self._wire.read_end(state.decided)[0] if state.decided else LOST
        except LogUnavailable:  # of a newer version, or encrypted
            return LOST

    async def _hand_over(self, on_lost: OnLost, key: str, state: State, end: End) -> None:
        """Calls *on_lost*: again if it could not read the stream, for a while."""
        time = asyncio.get_running_loop().time
        began, wait = time(), SOONEST
        while True:
            try:
                await on_lost(await self._lost(key, state, end))
            except LogUnavailable:
                if time() - began < _PATIENCE:
                    await asyncio.sleep(wait)
                    wait = min(wait * 2, LATEST)
                    continue
                logger.exception("a lost stream ends without hooks: it could not be read")
            except Exception:
                logger.exception("the function for lost streams failed; the stream ends without hooks")
            return

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
            if page is None:
                raise StreamNotFound("The store has forgotten the entries of the stream.")
            if not page.batches:
                raise LogUnavailable("The store does not have all entries of the stream.")
            for data in page.batches:
                first, entries = self._wire.read_batch(data)
                entries = entries[max(0, place + 1 - first) :]
                yield Batch(place + 1, entries)
                place += len(entries)
