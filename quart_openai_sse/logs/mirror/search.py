"""Finding streams: in the store, or in a process that has to store them again."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from quart_openai_sse.errors import LogUnavailable, StreamExpired, StreamNotFound
from quart_openai_sse.logs.entries import About
from quart_openai_sse.logs.mirror import State, Store
from quart_openai_sse.logs.mirror.again import Spawn, result_of
from quart_openai_sse.logs.mirror.processes import Lease
from quart_openai_sse.logs.mirror.questions import Questions
from quart_openai_sse.logs.mirror.wire import PASSING, Wire


class Search:
    """Asks the store, and the other processes where it has forgotten streams."""

    def __init__(self, store: Store, wire: Wire, questions: Questions, lease: Lease, *, spawn: Spawn) -> None:
        self._store = store
        self._wire = wire
        self._questions = questions
        self._lease = lease
        self._spawn = spawn
        self._asked: dict[tuple[str, str], asyncio.Task[int]] = {}

    async def state(self, key: str) -> State:
        """What the store has of a stream. Raises like `vouch`, for a passing stream too."""
        for _ in range(2):
            (state,) = await self._store.states([key])
            if state is not None:
                return state
            await self.vouch(key)
        raise LogUnavailable("The store has forgotten the stream.")

    async def vouch(self, key: str) -> None:
        """Returns when a process that has the stream has stored it again.

        Raises `StreamNotFound` if nobody has it, `StreamExpired` if it is passing, and `LogUnavailable`.
        """
        found = await self.who(key) if self._store.forgetful else 0
        if not found:
            raise StreamNotFound("There is no such stream.")
        if found == PASSING:
            raise StreamExpired("This stream is not kept: only the request that started it can read it.")

    async def who(self, key: str, *, stop: str = "") -> int:
        """Asks all processes, once for all that want to know the same. See `Questions.who`."""
        asked = self._asked.get((key, stop))
        if asked is None:
            asked = self._asked[key, stop] = self._spawn(self._questions.who(key, stop=stop))
            asked.add_done_callback(lambda _: self._asked.pop((key, stop), None))
        found = await result_of(asked)
        if not found and self._lease.in_doubt:
            raise LogUnavailable("The store has forgotten its streams, which are being stored again.")
        return found

    async def flush(self, key: str, writer: str) -> None:
        """Returns when the process of *writer* has written all that it has of a stream. Raises `LogUnavailable`."""
        await self._questions.flush(key, writer.partition(".")[0])

    async def streams_of(self, owner: str, ended_within: float) -> dict[str, About]:
        """The streams of *owner* in the store that run or have ended within so many seconds, by their keys."""
        return {
            key: known
            for key, state in await self._store.find(owner)
            if not state.end or state.ended_ago < ended_within
            if (known := self._read_about(state)) is not None
        }

    def _read_about(self, state: State) -> About | None:
        """What is known of a stream; `None` if this process cannot read it, which must not hide the others."""
        with suppress(LogUnavailable):
            return self._wire.read_about(state.about)
        return None
