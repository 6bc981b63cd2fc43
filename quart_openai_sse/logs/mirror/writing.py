"""When streams are written to the store, all those of a process together, and what becomes of each write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context

from quart_openai_sse.errors import ErrorValue, LogUnavailable
from quart_openai_sse.logs.entries import End
from quart_openai_sse.logs.mirror import NewStream, Store, Write, Written
from quart_openai_sse.logs.mirror.again import SOONEST, Spawn, until_answered
from quart_openai_sse.logs.mirror.own import OwnStream
from quart_openai_sse.logs.mirror.pace import Pace
from quart_openai_sse.logs.mirror.writes import Writes

logger = logging.getLogger("quart_openai_sse")

_LATER = 0.25  # seconds after which a stream is written that nobody reads elsewhere
_BATCH = 256 << 10  # bytes of one batch, unless it is a single entry
_CALL = 4 << 20  # bytes of one call of the store
_LATEST = 1.0  # seconds until a store that could not be reached is tried again, less than a writer waits for it
_STREAMS = 500  # of one call of the store
_UNSTORABLE = End("failed", "log_unavailable", ErrorValue.of(LogUnavailable("The stream could not be stored.")))


class Writing:
    """Writes the streams of this process to the *store*: at once those that are urgent, the others a moment later."""

    def __init__(self, store: Store, writes: Writes, *, spawn: Spawn) -> None:
        self._store = store
        self._writes = writes
        self._spawn = spawn
        self._urgent: dict[OwnStream, None] = {}
        self._others: dict[OwnStream, None] = {}
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._wait = SOONEST
        self._pace = Pace()
        self._reached = asyncio.Event()
        self._busy = False
        self._rested = asyncio.Event()

    def mark(self, stream: OwnStream) -> None:
        """See `Mirroring.mark`."""
        stream.marked = True
        if stream.urgent:
            self._others.pop(stream, None)
            self._urgent[stream] = None
            self._wake.set()
        elif stream not in self._urgent:
            self._others[stream] = None
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_LATER, self.hurry, context=Context())

    def hurry(self) -> None:
        """Writes all streams now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._urgent |= self._others
        self._others.clear()
        self._wake.set()

    async def run(self) -> None:
        """Writes, until it is cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._urgent:
                self._busy = True
                await self._pace.wait()
                streams = self._next()
                self._pace.count(len(streams))
                try:
                    await self._write(streams)
                    self._wait = SOONEST
                except Exception as error:
                    if not isinstance(error, LogUnavailable):
                        logger.exception("streams could not be written to the stream log")
                    for stream in streams:
                        self._put_back(stream)
                    await self._rest()
            self._busy = False
            self._rested.set()

    def try_again(self) -> None:
        """The store can be reached again."""
        self._reached.set()

    async def _rest(self) -> None:
        """Waits before a store is tried again that could not be reached."""
        self._reached.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait):
                await self._reached.wait()
        self._wait = min(self._wait * 2, _LATEST)

    async def idle(self) -> None:
        """Returns when nothing is left to write."""
        while self._busy or self._urgent or self._others:
            self._rested.clear()
            await self._rested.wait()

    def aclose(self) -> None:
        """Stops its timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self) -> list[OwnStream]:
        streams: list[OwnStream] = []
        size = 0
        for stream in self._urgent:
            if streams and (len(streams) == _STREAMS or size > _CALL):
                break
            streams.append(stream)
            size += min(stream.unwritten_size, _BATCH)
        for stream in streams:
            del self._urgent[stream]
            stream.marked = False
        return streams

    def _put_back(self, stream: OwnStream) -> None:
        """Writes the rest of a stream as soon as possible."""
        if stream.behind:
            self._others.pop(stream, None)
            self._urgent[stream] = None
            self._wake.set()
            stream.marked = True

    async def _write(self, streams: Sequence[OwnStream]) -> None:
        # The first try to create a stream is a task of its own, which has it written afterwards.
        behind = [stream for stream in streams if stream.behind and not stream.creating]
        if new := [stream for stream in behind if not stream.created]:
            await asyncio.gather(*(self._create(stream) for stream in new))
        writes = [(stream, write) for stream in behind if stream.created and (write := self._made(stream)) is not None]
        if writes:
            await self._store_all(writes)
        if any(stream.behind for stream in new):
            raise LogUnavailable("Streams could not be created.")

    async def _store_all(self, writes: Sequence[tuple[OwnStream, Write]]) -> None:
        try:
            results = await self._store.write([write for _, write in writes])
        except LogUnavailable:
            raise
        except Exception:
            if len(writes) == 1:
                self._give_up(writes[0][0])
                return
            for each in writes:  # the others must not wait for the one that the store does not take
                await self._store_all([each])
            return
        for (stream, write), written in zip(writes, results, strict=True):
            try:
                await self._take(stream, write, written)
            except Exception:
                logger.exception("stream %s: a producer's function failed", stream.about.id)

    async def _create(self, stream: OwnStream) -> None:
        with suppress(LogUnavailable):
            await self.create(stream)

    async def create(self, stream: OwnStream) -> None:
        """Stores a stream, or stores it again after the store has forgotten it. Raises `LogUnavailable`."""
        try:
            if stream.end is not None and stream.failed_empty:
                # Its start was refused. What was stored of it, if anything, gives its key free.
                write = self._writes.with_end(Write(key=stream.key, writer=stream.writer, place=0, count=0), stream.end)
                await self._store.write([write])
                stream.created = stream.is_whole = True
            elif await self._store.create(stream.key, self._new(stream)) is not None:
                await stream.lose()
            else:
                stream.created = True
        except LogUnavailable:
            raise
        except Exception:
            self._give_up(stream)
        stream.changed()

    def _new(self, stream: OwnStream) -> NewStream:
        return self._writes.new_stream(stream.writer, stream.digest, stream.about)

    def _give_up(self, stream: OwnStream) -> None:
        """A stream cannot be stored: what is stored of it ends as failed."""
        logger.exception("stream %s cannot be stored: other processes cannot read all of it", stream.about.id)
        stream.unstorable = True
        stream.changed()
        if stream.created:
            write = Write(key=stream.key, writer=stream.writer, place=stream.written, count=stream.written)
            self._spawn(self._end(self._writes.with_end(write, _UNSTORABLE)))

    async def _end(self, write: Write) -> None:
        await until_answered(lambda: self._store.write([write]))

    def _made(self, stream: OwnStream) -> Write | None:
        """What is to be written next; `None`: it cannot be encoded."""
        try:
            return self._writes.next(stream)
        except Exception:
            self._give_up(stream)
            return None

    async def _take(self, stream: OwnStream, write: Write, written: Written) -> None:
        """Takes note of what has become of a *write*."""
        if written.result == "lost":
            await stream.lose()
        elif written.result == "gone":
            stream.forgotten()
        elif written.result == "moved":
            if written.count > stream.last:  # nobody else writes to it
                logger.error("stream %s: the store has more entries than were written", stream.about.id)
                await stream.lose()
            stream.written = written.count
            self._put_back(stream)
        else:
            self._note(stream, write, written)

    def _note(self, stream: OwnStream, write: Write, written: Written) -> None:
        stream.written = write.count
        if write.request:
            stream.is_kept = True
        if write.decided:
            stream.is_decided = True
        if write.end:
            stream.is_whole = True
            stream.request = b""
        else:
            stream.read_elsewhere(written.readers)
            if written.stop:
                stream.stop(written.stop)
        if not stream.behind:
            stream.hurried = False
        stream.changed()
        if stream.behind and not stream.marked:  # more than fits into one batch
            self._put_back(stream)
