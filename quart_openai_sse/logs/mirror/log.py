"""A stream log that several processes share: the streams of each are in its memory, and mirrored in a store."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from itertools import count

from quart_openai_sse.config import Config
from quart_openai_sse.errors import LogUnavailable, StreamExpired, StreamNotFound
from quart_openai_sse.logs import OnLost, Reader, Writer
from quart_openai_sse.logs.entries import About
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.logs.memory_stream import OwningLog
from quart_openai_sse.logs.mirror import Processes, Store
from quart_openai_sse.logs.mirror.erasing import Erasing
from quart_openai_sse.logs.mirror.lost import LostStreams
from quart_openai_sse.logs.mirror.messages import Messages
from quart_openai_sse.logs.mirror.mirrors import Mirrors
from quart_openai_sse.logs.mirror.own import OwnStream
from quart_openai_sse.logs.mirror.own_streams import OwnStreams
from quart_openai_sse.logs.mirror.processes import Lease
from quart_openai_sse.logs.mirror.questions import Questions
from quart_openai_sse.logs.mirror.search import Search
from quart_openai_sse.logs.mirror.tasks import Tasks
from quart_openai_sse.logs.mirror.wire import STORED, Cipher, Stop, Wire, encode_message
from quart_openai_sse.logs.mirror.writes import Writes
from quart_openai_sse.logs.mirror.writing import Writing

_CLOSING = 2.0  # seconds for what is still to be written when the log is closed


class MirrorLog:
    """See `StreamLog`. *lease* is the seconds after which a process that does not answer is taken for dead.

    With a *cipher* what is stored of streams is encrypted: entries, ends, requests, and what is known of them.
    """

    shared = True
    patience = 2.0
    """Seconds that a writer waits for the store."""

    def __init__(self, store: Store, config: Config, *, lease: float = 15, cipher: Cipher | None = None) -> None:
        self.process = secrets.token_hex(8)
        self.store = store
        self.memory = MemoryLog.from_config(config, tombstone=0, kept=self._own_stream)
        """The streams that are produced here."""
        self._wire = Wire(cipher)
        self._numbers = count(1)
        self._tasks = spawn = Tasks()
        self._lease = Lease(store, lease, self)
        self._questions = Questions(store, self.process, self._lease)
        self._search = Search(store, self._wire, self._questions, self._lease, spawn=spawn)
        self._writes = Writes(self._wire, config)
        self._writing = Writing(store, self._writes, spawn=spawn)
        self._mirrors = Mirrors(
            store,
            self._wire,
            process=self.process,
            memory=self.memory,
            retention=config.retention,
            search=self._search,
            spawn=spawn,
        )
        self._own = OwnStreams(
            store,
            self.memory,
            self._mirrors,
            self._writes,
            self._writing,
            self._lease,
            patience=self.patience,
            spawn=spawn,
        )
        self._messages = Messages(store, self.memory, self._mirrors, self._own, self._questions, spawn=spawn)
        self._erasing = Erasing(self, store, self.memory, self._own, self._search, self._questions, self._lease)
        self._lost = LostStreams(store, self._wire, self._writes, new_writer=self._new_writer, spawn=spawn)
        self._opening = asyncio.Lock()
        self._is_open = False
        self._closings = 0
        """How often it was closed."""
        self._looking = False

    @property
    def size(self) -> int:
        """See `StreamLog.size`."""
        return self.memory.size

    # Open and close ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See `StreamLog.open`."""
        async with self._opening:
            if self._is_open:
                return
            closings = self._closings
            await self.store.open(self.process, self._messages.hear, self._look_again)
            try:
                await self._lease.renew()
                if self._closings != closings:
                    raise LogUnavailable("The stream log was closed while it was opened.")
            except BaseException:
                await self.store.aclose()
                raise
            self._is_open = True
            self._tasks(self._writing.run())
            self._tasks(self._lease.run())

    async def ready(self) -> bool:
        """See `StreamLog.ready`."""
        return self._is_open and await self.store.ready()

    async def aclose(self) -> None:
        """See `StreamLog.aclose`. Streams that are still produced here end as lost."""
        self._closings += 1
        if not self._is_open:
            return
        self._is_open = False
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await self._leave()
        await self._tasks.cancel()
        self._writing.aclose()
        self._lease.leave()
        await self.store.aclose()
        await self.memory.aclose()

    async def _leave(self) -> None:
        """Writes what is not written yet, and leaves the streams of other processes."""
        for stream in self._own.all():
            await stream.abandon()
        self._writing.hurry()
        await asyncio.gather(self._mirrors.aclose(), self._writing.idle())

    # Start, read, stop, find ------------------------------------------------------------------------------------------

    async def create(self, key: str, *, about: About, digest: str, retain: bool) -> Writer | None:
        """See `StreamLog.create`."""
        if not retain:
            return await self.memory.create(key, about=about, digest=digest, retain=False)
        self._check_open()
        held = self.memory.get(key)
        writer = self._new_writer()
        if digest and (held is None or held.failed_empty):
            stream = await self._own.begin_stored(key, about, digest, writer=writer)
        else:
            stream = await self._own.begin(key, about, digest)
        if stream is None:
            return None
        stream.writer = writer
        if digest:
            stream.created = True
        else:
            self._own.store_soon(stream)
        return stream

    async def read(self, key: str, *, after: str = "", heartbeat: float | None = None) -> Reader:
        """See `StreamLog.read`."""
        if self.memory.get(key) is not None:
            return await self.memory.read(key, after=after, heartbeat=heartbeat)
        self._check_open()
        return await self._mirrors.read(key, after=after, heartbeat=heartbeat)

    async def stop(self, key: str, reason: str) -> None:
        """See `StreamLog.stop`."""
        if self.memory.get(key) is not None:
            await self.memory.stop(key, reason)
            return
        self._check_open()
        tell = encode_message(Stop(key, reason))
        if await self.store.stop(key, reason, tell=tell) is not None:
            return
        found = await self._search.who(key, stop=reason)
        if not found:
            raise StreamNotFound("There is no such stream.")
        if found == STORED:
            await self.store.stop(key, reason, tell=tell)

    async def tail(self, key: str) -> tuple[str, bool]:
        """See `StreamLog.tail`."""
        if self.memory.get(key) is not None:
            return await self.memory.tail(key)
        self._check_open()
        state = await self._search.state(key)
        if not state.kept:
            raise StreamExpired("This stream has ended and is no longer kept.")
        return str(state.count or ""), bool(state.end)

    async def find(self, owner: str, *, thread: str | None = None, ended_within: float = 0.0) -> list[About]:
        """See `StreamLog.find`."""
        self._check_open()
        if not owner:
            return []
        found = await self._search.streams_of(owner, ended_within)
        self._own.correct(found, owner, ended=bool(ended_within))
        newest_first = sorted(found.values(), key=lambda about: about.created, reverse=True)
        return [about for about in newest_first if thread is None or about.thread == thread]

    # Erase ------------------------------------------------------------------------------------------------------------

    async def erase(self, key: str) -> None:
        """See `StreamLog.erase`."""
        own = self.memory.get(key)
        if own is not None and (not own.retain or own.end is None):
            return
        self._check_open()
        await self._erasing.erase(key)

    async def forget(self, owner: str) -> None:
        """See `StreamLog.forget`."""
        self._check_open()
        if owner:
            await self._erasing.forget(owner)

    def on_lost(self, call: OnLost) -> None:
        """See `StreamLog.on_lost`."""
        self._lost.on_lost = call

    # The processes, and messages that may have been missed ------------------------------------------------------------

    def forgotten(self) -> None:
        """See `Watching.forgotten`."""
        self._look_again()

    def seen(self, processes: Processes, dead: frozenset[str]) -> None:
        """See `Watching.seen`."""
        for process in dead:
            self._lost.end_all(process)
        if not self._lease.in_doubt:  # otherwise a process that reads may not have come back yet
            self._own.keep_readers((processes.alive | processes.overdue) - dead)

    def _look_again(self) -> None:
        self._writing.try_again()
        if self._is_open and not self._looking:
            self._looking = True
            self._tasks(self._look())

    async def _look(self) -> None:
        self._looking = False
        await asyncio.gather(self._mirrors.look(), self._own.look())

    # Helpers ----------------------------------------------------------------------------------------------------------

    def _own_stream(self, log: OwningLog, key: str, about: About, digest: str) -> OwnStream:
        return OwnStream(log, key, about, digest, mirroring=self._own)

    def _new_writer(self) -> str:
        return f"{self.process}.{next(self._numbers)}"

    def _check_open(self) -> None:
        if not self._is_open:
            raise LogUnavailable("The stream log is not open.")
