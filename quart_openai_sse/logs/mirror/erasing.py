"""Erasing streams: in the store, and in every process that has something of them."""

from __future__ import annotations

from collections.abc import Sequence

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs import StreamLog
from quart_openai_sse.logs.endings import ERASED, wait_for_ends
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.logs.mirror import Store
from quart_openai_sse.logs.mirror.own import OwnStream
from quart_openai_sse.logs.mirror.own_streams import OwnStreams
from quart_openai_sse.logs.mirror.processes import Lease
from quart_openai_sse.logs.mirror.questions import Questions
from quart_openai_sse.logs.mirror.search import Search

_MANY = 500  # streams in one call of the store


class Erasing:
    """Erases streams of *log*."""

    def __init__(
        self,
        log: StreamLog,
        store: Store,
        memory: MemoryLog,
        own: OwnStreams,
        search: Search,
        questions: Questions,
        lease: Lease,
    ) -> None:
        self._log = log
        self._store = store
        self._memory = memory
        self._own = own
        self._search = search
        self._questions = questions
        self._lease = lease

    async def erase(self, key: str) -> None:
        """See `StreamLog.erase`."""
        own = self._memory.get(key)
        if isinstance(own, OwnStream) and own.end is not None and not own.is_whole:
            await own.close(own.end)
        if (await self._search.state(key)).end:
            await self._erase([key])

    async def forget(self, owner: str) -> None:
        """See `StreamLog.forget`."""
        found = [key for key, _ in await self._store.find(owner)]
        keys = list(dict.fromkeys(found + self._memory.keys_of(owner)))
        late: LogUnavailable | None = None
        try:
            await self._questions.forgotten(owner, ERASED)
            await wait_for_ends(self._log, keys)
        except LogUnavailable as error:  # what has ended is erased nevertheless
            late = error
        for first in range(0, len(keys), _MANY):
            some = keys[first : first + _MANY]
            states = await self._store.states(some)
            await self._erase([key for key, state in zip(some, states, strict=True) if state is not None and state.end])
        if late is not None:
            raise late

    async def _erase(self, keys: Sequence[str]) -> None:
        """Also what was erased before: a process may not have been told."""
        for key in keys:
            await self._store.erase(key)
            await self._own.drop(key)
        if keys:
            await self._questions.erased(keys)
            if self._lease.in_doubt:
                raise LogUnavailable("A process that has not come back to the store may still have the stream.")
