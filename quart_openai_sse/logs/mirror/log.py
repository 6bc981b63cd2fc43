"""A stream log that several processes share: the streams of each are in its memory, and mirrored in a store."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from contextvars import Context
from itertools import count
from typing import Any, TypeVar

from quart_openai_sse.config import Config
from quart_openai_sse.errors import (
    ErrorValue,
    KeyReused,
    LogUnavailable,
    StartAbandoned,
    StreamExpired,
    StreamNotFound,
)
from quart_openai_sse.logs import OnLost, Reader, Writer
from quart_openai_sse.logs.endings import ERASED, wait_for_ends
from quart_openai_sse.logs.entries import About, End
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.logs.memory_stream import OwningLog
from quart_openai_sse.logs.mirror import Processes, State, Store, Write
from quart_openai_sse.logs.mirror.again import result_of, until_answered
from quart_openai_sse.logs.mirror.lost import LostStreams
from quart_openai_sse.logs.mirror.mirrors import Mirrors
from quart_openai_sse.logs.mirror.own import OwnStream
from quart_openai_sse.logs.mirror.processes import Lease
from quart_openai_sse.logs.mirror.questions import Questions
from quart_openai_sse.logs.mirror.wire import (
    PASSING,
    STORED,
    Answer,
    Cipher,
    Erased,
    Flush,
    Forgotten,
    Joined,
    Message,
    Stop,
    Who,
    Wire,
    encode_message,
    read_message,
)
from quart_openai_sse.logs.mirror.writing import Writing

logger = logging.getLogger("quart_openai_sse")

_MANY = 500  # streams in one call of the store
_CLOSING = 2.0  # seconds for what is still to be written when the log is closed
_ABANDONED = End("failed", "start_abandoned", ErrorValue.of(StartAbandoned()))


T = TypeVar("T")


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
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writing = Writing(store, self._wire, config, spawn=self._spawn)
        self.lease = lease
        self._lease = Lease(store, lease, self)
        self._questions = Questions(store, self.process, self._count_living)
        self._asked: dict[tuple[str, str], asyncio.Task[int]] = {}
        self._lost = LostStreams(store, self._wire, self._writing, new_writer=self._new_writer, spawn=self._spawn)
        self._mirrors = Mirrors(
            store, self._wire, process=self.process, memory=self.memory, asking=self, spawn=self._spawn
        )
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
            await self.store.open(self.process, self._hear, self._look_again)
            try:
                await self._lease.renew()
                if self._closings != closings:
                    raise LogUnavailable("The stream log was closed while it was opened.")
            except BaseException:
                await self.store.aclose()
                raise
            self._is_open = True
            self._spawn(self._writing.run())
            self._spawn(self._lease.run())

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
        for _ in range(3):  # on Python 3.11 a task can miss a cancellation that comes with what it waits for
            for task in (tasks := [task for task in self._tasks if task is not asyncio.current_task()]):
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=0.2)
        self._writing.aclose()
        self._lease.leave()
        await self.store.aclose()
        await self.memory.aclose()

    async def _leave(self) -> None:
        """Writes what is not written yet, and leaves the streams of other processes."""
        for stream in self._own_streams():
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
            try:
                state = await self.store.create(key, self._writing.new_stream(writer, digest, about))
                stream = None if state is not None else await self._begin(key, about, digest)
            except BaseException:  # it may have been stored
                self._spawn(self._abandon(key, writer))
                raise
            if state is not None:
                _check_digest(state, digest)
        else:
            stream = await self._begin(key, about, digest)
        if stream is None:
            return None
        stream.writer = writer
        if digest:
            stream.created = True
        else:
            stream.creating = True
            self._spawn(self._create(stream))
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
        found = await self._who(key, stop=reason)
        if not found:
            raise StreamNotFound("There is no such stream.")
        if found == STORED:
            await self.store.stop(key, reason, tell=tell)

    async def tail(self, key: str) -> tuple[str, bool]:
        """See `StreamLog.tail`."""
        if self.memory.get(key) is not None:
            return await self.memory.tail(key)
        state = await self._state(key)
        if not state.kept:
            raise StreamExpired("This stream has ended and is no longer kept.")
        return str(state.count or ""), bool(state.end)

    async def find(self, owner: str, *, thread: str | None = None, ended_within: float = 0.0) -> list[About]:
        """See `StreamLog.find`."""
        self._check_open()
        if not owner:
            return []
        found = {
            key: self._wire.read_about(state.about)
            for key, state in await self.store.find(owner)
            if not state.end or state.ended_ago < ended_within
        }
        for key in self.memory.keys_of(owner):
            stream = self.memory.get(key)
            if isinstance(stream, OwnStream) and not stream.created and stream.end is None:
                found[key] = stream.about
            elif stream is not None and stream.end is not None and not ended_within:
                found.pop(key, None)  # its end is not in the store yet
        newest_first = sorted(found.values(), key=lambda about: about.created, reverse=True)
        return [about for about in newest_first if thread is None or about.thread == thread]

    # Erase ------------------------------------------------------------------------------------------------------------

    async def erase(self, key: str) -> None:
        """See `StreamLog.erase`."""
        own = self.memory.get(key)
        if own is not None and (not own.retain or own.end is None):
            return
        if isinstance(own, OwnStream) and not own.is_whole:
            await own.close(own.end)  # type: ignore[arg-type]  # it has one
        if (await self._state(key)).end:
            await self._erase([key])

    async def forget(self, owner: str) -> None:
        """See `StreamLog.forget`."""
        self._check_open()
        if not owner:
            return
        keys = list(dict.fromkeys([key for key, _ in await self.store.find(owner)] + self.memory.keys_of(owner)))
        late: LogUnavailable | None = None
        try:
            await self._questions.forgotten(owner, ERASED)
            await wait_for_ends(self, keys)
        except LogUnavailable as error:  # what has ended is erased nevertheless
            late = error
        for first in range(0, len(keys), _MANY):
            some = keys[first : first + _MANY]
            states = await self.store.states(some)
            await self._erase([key for key, state in zip(some, states, strict=True) if state is not None and state.end])
        if late is not None:
            raise late

    async def _erase(self, keys: Sequence[str]) -> None:
        """Also what was erased before: a process may not have been told."""
        for key in keys:
            await self.store.erase(key)
            await self._drop(key)
        if keys:
            await self._questions.erased(keys)
            if self._lease.in_doubt:
                raise LogUnavailable("A process that has not come back to the store may still have the stream.")

    def on_lost(self, call: OnLost) -> None:
        """See `StreamLog.on_lost`."""
        self._lost.on_lost = call

    # What its own streams need ----------------------------------------------------------------------------------------

    def mark(self, stream: OwnStream) -> None:
        """See `Mirroring.mark`."""
        self._writing.mark(stream)

    def let_go(self, stream: OwnStream) -> None:
        """See `Mirroring.let_go`."""
        self.memory.let_go(stream)

    def look_for_readers(self, stream: OwnStream) -> None:
        """See `Mirroring.look_for_readers`."""
        self._spawn(self._look_for_readers(stream))

    async def _look_for_readers(self, stream: OwnStream) -> None:
        joins = stream.joins
        try:
            (state,) = await self.store.states([stream.key])
            readers = () if state is None else state.readers
            if readers:
                processes = await self._lease.renew()
                readers = tuple({*readers} & {*processes.alive, *processes.overdue})
            if state is None or stream.joins != joins:  # it is being stored again, or the answer is out of date
                stream.unread(None, 0)
            else:
                stream.unread(readers, state.left_ago)
        except LogUnavailable:
            stream.unread(None, 0)

    # What its mirrors need --------------------------------------------------------------------------------------------

    async def vouch(self, key: str) -> None:
        """See `Asking.vouch`."""
        found = await self._who(key) if self.store.forgetful else 0
        if not found:
            raise StreamNotFound("There is no such stream.")
        if found == PASSING:
            raise StreamExpired("This stream is not kept: only the request that started it can read it.")

    async def flush(self, key: str, writer: str) -> None:
        """See `Asking.flush`."""
        await self._questions.flush(key, writer.partition(".")[0])

    async def _state(self, key: str) -> State:
        self._check_open()
        for _ in range(2):
            (state,) = await self.store.states([key])
            if state is not None:
                return state
            await self.vouch(key)
        raise LogUnavailable("The store has forgotten the stream.")

    async def _who(self, key: str, *, stop: str = "") -> int:
        """Asks all processes, once for all that want to know the same."""
        asked = self._asked.get((key, stop))
        if asked is None:
            asked = self._asked[key, stop] = self._spawn(self._questions.who(key, stop=stop))
            asked.add_done_callback(lambda _: self._asked.pop((key, stop), None))
        found = await result_of(asked)
        if not found and self._lease.in_doubt:
            raise LogUnavailable("The store has forgotten its streams, which are being stored again.")
        return found

    async def _count_living(self) -> int:
        return len((await self._lease.renew()).alive)

    # Messages ---------------------------------------------------------------------------------------------------------

    def _hear(self, key: str, data: bytes) -> None:
        try:
            if key:
                self._mirrors.hear(key, data)
            elif (message := read_message(data)) is not None:
                self._take(message)
        except Exception:  # a message that cannot be read must not end the listening
            logger.exception("a message of the stream log could not be taken")

    def _take(self, message: Message) -> None:
        if isinstance(message, Answer):
            self._questions.take(message)
            return
        if isinstance(message, Erased):
            self._spawn(self._answer_erased(message))
            return
        if isinstance(message, Forgotten):
            self.memory.stop_passing(message.owner, message.reason)
            self._spawn(self._answer(message.process, message.question, 0))
            return
        stream = self.memory.get(message.key)
        if isinstance(message, Who):
            self._spawn(self._answer_who(message))
        elif isinstance(message, Flush):
            self._spawn(self._answer_flush(message))
        elif isinstance(message, Stop):
            if stream is not None:
                stream.stop(message.reason)
        elif isinstance(stream, OwnStream):
            (stream.joined if isinstance(message, Joined) else stream.parted)(message.process)

    async def _answer_who(self, message: Who) -> None:
        stream = self.memory.get(message.key)
        found = 0
        if stream is not None:
            if message.stop:
                stream.stop(message.stop)
            if stream.failed_empty:  # it does not hold its key, and there is nothing to read
                found = 0
            elif isinstance(stream, OwnStream):
                await self._store_again([stream], whole=True)
                await stream.written_out(self.patience)
                found = STORED
            elif stream.end is None:
                found = PASSING
        await self._answer(message.process, message.question, found)

    async def _answer_erased(self, message: Erased) -> None:
        for key in message.keys:
            await self._drop(key)
        await self._answer(message.process, message.question, 0)

    async def _answer_flush(self, message: Flush) -> None:
        stream = self.memory.get(message.key)
        if isinstance(stream, OwnStream):
            stream.hurried = True
            self._writing.mark(stream)
            await stream.written_out(self.patience)
        await self._answer(message.process, message.question, STORED)

    async def _answer(self, process: str, question: int, found: int) -> None:
        with suppress(LogUnavailable):  # the question is asked again
            await self.store.send(process, encode_message(Answer(question, found)))

    async def _drop(self, key: str) -> None:
        if (stream := self.memory.get(key)) is not None and stream.end is not None:
            await self.memory.drop(stream)
        await self._mirrors.cut(key)

    # The processes --------------------------------------------------------------------------------------------------

    def forgotten(self) -> None:
        """See `Watching.forgotten`."""
        self._look_again()

    def seen(self, processes: Processes, dead: frozenset[str]) -> None:
        """See `Watching.seen`."""
        for process in dead:
            self._lost.end_all(process)
        if self._lease.in_doubt:  # a process that reads may not have come back yet
            return
        there = (processes.alive | processes.overdue) - dead
        gone = [(stream, process) for stream in self._own_streams() for process in stream.elsewhere - there]
        if gone:
            self._spawn(self._take_out(gone))

    # After messages may have been missed, or the store has forgotten something ----------------------------------------

    def _look_again(self) -> None:
        self._writing.try_again()
        if self._is_open and not self._looking:
            self._looking = True
            self._spawn(self._look())

    async def _look(self) -> None:
        self._looking = False
        await asyncio.gather(self._mirrors.look(), self._look_at_own())

    async def _look_at_own(self) -> None:
        streams = [stream for stream in self._own_streams() if not stream.unstorable]
        for first in range(0, len(streams), _MANY):
            some = streams[first : first + _MANY]
            await until_answered(lambda some=some: self._store_again(some))  # type: ignore[misc]

    async def _store_again(self, streams: Sequence[OwnStream], *, whole: bool = False) -> None:
        """Looks at own streams in the store: whether they are there, are to be stopped, are read, are still ours.

        With *whole* those that had been stored with their ends are stored again too, if they are not there.
        """
        states = await self.store.states([stream.key for stream in streams])
        for stream, state in zip(streams, states, strict=True):
            if state is None:
                if stream.created and (whole or not stream.is_whole):
                    stream.forgotten()
            elif not state.kept:  # erased, or expired a little earlier
                await self._drop(stream.key)
            elif state.writer != stream.writer:
                if stream.created:
                    await stream.lose()
            elif not state.end:
                stream.read_elsewhere(state.readers)
                if state.stop:
                    stream.stop(state.stop)

    # Helpers ----------------------------------------------------------------------------------------------------------

    async def _take_out(self, readers: Sequence[tuple[OwnStream, str]]) -> None:
        """Takes processes that have died, or have closed without a word, out of the readers of own streams."""
        for stream, process in readers:
            await self.store.leave(stream.key, process, tell=b"")
            stream.parted(process)

    async def _begin(self, key: str, about: About, digest: str) -> OwnStream | None:
        """A stream in memory; `None` if *key* exists there."""
        stream = await self.memory.create(key, about=about, digest=digest, retain=True)
        return stream if isinstance(stream, OwnStream) else None

    async def _create(self, stream: OwnStream) -> None:
        """The first try to store a new stream, at once and by itself."""
        try:
            await self._writing.create(stream)
        except LogUnavailable:
            stream.refused = True
            stream.changed()
        finally:
            stream.creating = False
        if stream.behind:
            self._writing.mark(stream)

    async def _abandon(self, key: str, writer: str) -> None:
        """Ends a stream that may have been stored and that nobody produces."""
        write = self._writing.with_end(Write(key=key, writer=writer, place=0, count=0), _ABANDONED)
        await until_answered(lambda: self.store.write([write]))

    def _own_stream(self, log: OwningLog, key: str, about: About, digest: str) -> OwnStream:
        return OwnStream(log, key, about, digest, mirroring=self)

    def _own_streams(self) -> list[OwnStream]:
        return [stream for stream in self.memory.streams() if isinstance(stream, OwnStream)]

    def _new_writer(self) -> str:
        return f"{self.process}.{next(self._numbers)}"

    def _check_open(self) -> None:
        if not self._is_open:
            raise LogUnavailable("The stream log is not open.")

    def _spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coroutine, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        # The others are of a mirror that could not be opened: those who asked for it have raised them.
        if error is not None and not isinstance(error, LogUnavailable | StreamNotFound | StreamExpired):
            logger.error("a task of the stream log failed", exc_info=error)


def _check_digest(state: State, digest: str) -> None:
    if state.digest != digest:
        raise KeyReused("This Idempotency-Key was used before with another body.")
