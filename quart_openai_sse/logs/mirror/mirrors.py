"""The streams of other processes that are read in this one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from quart_openai_sse.errors import InvalidLastEventID, LogUnavailable, StreamExpired, StreamNotFound
from quart_openai_sse.logs.endings import ERASED
from quart_openai_sse.logs.entries import END_ID, End, Entry, parse_place
from quart_openai_sse.logs.entries import LOST as EXPIRED
from quart_openai_sse.logs.memory_stream import OwningLog
from quart_openai_sse.logs.mirror import Page, State, Store
from quart_openai_sse.logs.mirror.again import LATEST, SOONEST, Spawn, result_of
from quart_openai_sse.logs.mirror.following import MirrorReader, MirrorStream
from quart_openai_sse.logs.mirror.loading import Loading
from quart_openai_sse.logs.mirror.own import LOST
from quart_openai_sse.logs.mirror.search import Search
from quart_openai_sse.logs.mirror.wire import END, Left, Wire, encode_message

_MANY = 500  # streams in one call of the store
_LEAVING = 0.5  # seconds until a store that could not be told that a stream is left is told again, at most
_PATIENCE = 2.0  # seconds until the store must have been told that a stream was left, before it is read again
_ANY = 10**16
_ERASED = End("stopped", ERASED)


class Mirrors:
    """See above. They take memory of *memory*."""

    def __init__(
        self,
        store: Store,
        wire: Wire,
        *,
        process: str,
        memory: OwningLog,
        retention: float,
        search: Search,
        spawn: Spawn,
    ) -> None:
        self._store = store
        self._retention = retention
        self._wire = wire
        self._process = process
        self._memory = memory
        self._search = search
        self._loading = Loading(store, wire, search, process=process, spawn=spawn)
        self._spawn = spawn
        self._streams: dict[str, MirrorStream] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._streams)

    async def read(self, key: str, *, after: str, heartbeat: float | None) -> MirrorReader:
        """See `StreamLog.read`."""
        place = 0 if after == END_ID else parse_place(after, last=_ANY)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = MirrorStream(self._memory, self, key)
            stream.opening = self._spawn(self._open(stream, place))
        stream.openers += 1
        try:
            if stream.opening is not None:
                await result_of(stream.opening)
            elif stream.end is not None:  # an open reader keeps the mirror, but its time may be over
                await self._loading.kept(key, stream.last, join=False)
            place, at_end = await self._place(stream, place, at_end=after == END_ID)
            return MirrorReader(stream, place, at_end=at_end, heartbeat=heartbeat)
        finally:
            stream.openers -= 1
            if not stream.openers and not stream.readers:
                self.unread(stream)

    async def aclose(self) -> None:
        """Closes all readers, and returns when the store knows that."""
        for stream in list(self._streams.values()):
            for reader in list(stream.readers):
                await reader.aclose()
            self.unread(stream)
        while self._leaving:
            await asyncio.wait(list(self._leaving.values()))

    # Paging -----------------------------------------------------------------------------------------------------------

    def page(self, key: str, place: int) -> asyncio.Task[Sequence[Entry]]:
        """See `Paging.page`."""
        return self._loading.page(key, place)

    def fill(self, stream: MirrorStream) -> None:
        """See `Paging.fill`."""
        stream.again = True
        if stream.filling is None and stream.opening is None:
            stream.filling = self._spawn(self._fill(stream))

    def unread(self, stream: MirrorStream) -> None:
        """See `Paging.unread`."""
        if self._streams.get(stream.key) is stream:
            del self._streams[stream.key]
            stream.discard()
            self._leaving[stream.key] = self._spawn(self._leave(stream))

    # The store's messages ---------------------------------------------------------------------------------------------

    def hear(self, key: str, data: bytes) -> None:
        """A batch or an end has been written to a stream. Raises `LogUnavailable` if it cannot be read."""
        stream = self._streams.get(key)
        if stream is None or stream.end is not None:
            return
        if stream.opening is not None:
            stream.again = True
        elif data[:1] == END:
            end, count = self._wire.read_end(data)
            if stream.last >= count:
                stream.finish(end)
            else:
                self._missed(stream, count)
        else:
            first, entries = self._wire.read_batch(data)
            if not stream.extend(first, entries):
                self._missed(stream, first + len(entries) - 1)

    async def look(self) -> None:
        """Brings all mirrors up to date, after messages may have been missed."""
        wait = SOONEST
        keys = [key for key, stream in self._streams.items() if stream.end is None and stream.opening is None]
        while keys:
            try:
                states = await self._store.states(keys[:_MANY])
            except LogUnavailable:
                await asyncio.sleep(wait)
                wait = min(wait * 2, LATEST)
                continue
            for key, state in zip(keys, states, strict=False):
                if (stream := self._streams.get(key)) is not None and self._is_behind(stream, state):
                    self.fill(stream)
            del keys[:_MANY]

    async def cut(self, key: str) -> None:
        """Ends the readers of a stream that was erased: those that wait for its end have not heard of it yet."""
        if (stream := self._streams.get(key)) is not None:
            stream.finish(_ERASED)
            for reader in list(stream.readers):
                await reader.aclose()

    # Steps ------------------------------------------------------------------------------------------------------------

    async def _open(self, stream: MirrorStream, place: int) -> None:
        key = stream.key
        if (leaving := self._leaving.get(key)) is not None:  # it must not undo what happens here
            await asyncio.wait([leaving], timeout=_PATIENCE)
            if not leaving.done():  # it goes on
                if self._streams.get(key) is stream:
                    del self._streams[key]
                raise LogUnavailable("The store does not answer.")
        try:
            await self._store.follow(key)
            page = await self._loading.kept(key, place, join=True)
            if self._streams.get(key) is not stream:  # every read of it was cancelled
                return
            stream.begin(self._wire.read_about(page.state.about), min(place, page.state.count))
            self._apply(stream, page)
        except BaseException:
            self.unread(stream)
            raise
        stream.opening = None
        if stream.again:
            self.fill(stream)

    async def _place(self, stream: MirrorStream, place: int, *, at_end: bool) -> tuple[int, bool]:
        """A reader's place, and whether it has the end already. Raises `InvalidLastEventID` and `LogUnavailable`."""
        if not at_end and place <= stream.last:
            return place, False
        state = await self._state(stream)
        if at_end:
            if not state.end:
                raise InvalidLastEventID("The last event ID is not a place in this stream.")
            return state.count, True
        if place > state.count and not state.end:
            await self._search.flush(stream.key, state.writer)
            state = await self._state(stream)
        if place > state.count:
            self._check_lost(state)
            place = state.count
        await self._reach(stream, place)
        return place, False

    def _check_lost(self, state: State) -> None:
        """Raises unless the stream has lost entries that a reader may have had, and has ended."""
        if state.end and self._wire.read_end(state.end)[0].reason == LOST.reason:
            return
        if not state.end and state.attempt > 1:  # another process is about to end it
            raise LogUnavailable("The process that wrote the stream has died.")
        raise InvalidLastEventID("The last event ID is not a place in this stream.")

    async def _reach(self, stream: MirrorStream, place: int) -> None:
        """Brings the window to *place*, which the store has."""
        if not any(reader.waits for reader in stream.readers):  # the others find what they need in the store
            stream.begin(stream.about, max(place, stream.last))
        while stream.last < place:
            before = stream.last
            self._apply(stream, await self._loading.kept(stream.key, before, join=True))
            if stream.last == before:
                raise LogUnavailable("The store does not have all entries of the stream yet.")

    async def _state(self, stream: MirrorStream) -> State:
        (state,) = await self._store.states([stream.key])
        if state is None:
            raise LogUnavailable("The store has forgotten the stream.")
        return state

    def _apply(self, stream: MirrorStream, page: Page) -> None:
        """Adds what was loaded."""
        for data in page.batches:
            stream.extend(*self._wire.read_batch(data))
        stream.known = max(stream.known, page.state.count)
        if page.state.end and stream.last >= page.state.count:
            stream.finish(self._wire.read_end(page.state.end)[0])

    def _missed(self, stream: MirrorStream, count: int) -> None:
        stream.known = max(stream.known, count)
        self.fill(stream)

    def _is_behind(self, stream: MirrorStream, state: State | None) -> bool:
        return state is None or state.count > stream.last or bool(state.end) or self._process not in state.readers

    async def _fill(self, stream: MirrorStream) -> None:
        """Loads what the mirror does not have, as long as a reader waits for it."""
        wait = SOONEST
        try:
            while self._streams.get(stream.key) is stream and stream.end is None and stream.again:
                stream.again = False
                try:
                    page = await self._loading.load(stream.key, stream.last, join=True)
                    if self._streams.get(stream.key) is not stream:
                        return
                    if page.state.kept:
                        self._apply(stream, page)
                    else:
                        # Where nothing is evicted, only an erasure removes it before its time.
                        is_early = page.state.ended_ago < self._retention
                        stream.finish(_ERASED if is_early and not self._store.forgetful else EXPIRED)
                except LogUnavailable:
                    await asyncio.sleep(wait)
                    wait = min(wait * 2, LATEST)
                    stream.again = True
                except (StreamNotFound, StreamExpired):
                    stream.finish(LOST)
                else:
                    stream.again |= stream.last < stream.known and any(reader.waits for reader in stream.readers)
        finally:
            stream.filling = None

    async def _leave(self, stream: MirrorStream) -> None:
        """Tells the store that this process does not read the stream any more, unless it reads it again."""
        key, wait = stream.key, SOONEST
        try:
            if stream.opening is not None:
                await asyncio.wait([stream.opening])
            await self._store.unfollow([key])
            while stream.end is None and key not in self._streams:
                with suppress(LogUnavailable):
                    await self._store.leave(key, self._process, tell=encode_message(Left(key, self._process)))
                    break
                await asyncio.sleep(wait)
                wait = min(wait * 2, _LEAVING)
        finally:
            if self._leaving.get(key) is asyncio.current_task():
                del self._leaving[key]
