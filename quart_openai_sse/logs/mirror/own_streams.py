"""The streams that are produced in this process, as a whole: stored, looked after, dropped."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set

from quart_openai_sse.errors import ErrorValue, KeyReused, LogUnavailable, StartAbandoned
from quart_openai_sse.logs.entries import About, End
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.logs.mirror import NewStream, Store, Write
from quart_openai_sse.logs.mirror.again import Spawn, until_answered
from quart_openai_sse.logs.mirror.mirrors import Mirrors
from quart_openai_sse.logs.mirror.own import OwnStream
from quart_openai_sse.logs.mirror.processes import Lease
from quart_openai_sse.logs.mirror.writes import Writes
from quart_openai_sse.logs.mirror.writing import Writing

logger = logging.getLogger("quart_openai_sse")

_MANY = 500  # streams in one call of the store
_ABANDONED = End("failed", "start_abandoned", ErrorValue.of(StartAbandoned()))


class OwnStreams:
    """The streams of *memory* that are mirrored in the *store*. See also `Mirroring`.

    *patience* is the seconds that a writer waits for the store.
    """

    def __init__(
        self,
        store: Store,
        memory: MemoryLog,
        mirrors: Mirrors,
        writes: Writes,
        writing: Writing,
        lease: Lease,
        *,
        patience: float,
        spawn: Spawn,
    ) -> None:
        self.patience = patience
        self.lease = lease.seconds
        self._store = store
        self._memory = memory
        self._mirrors = mirrors
        self._writes = writes
        self._writing = writing
        self._lease = lease
        self._spawn = spawn

    def all(self) -> list[OwnStream]:
        """Those that are kept."""
        return [stream for stream in self._memory.streams() if isinstance(stream, OwnStream)]

    def correct(self, found: dict[str, About], owner: str, *, ended: bool) -> None:
        """Adds to what the store has found of *owner* what it does not know yet.

        Unless those that have *ended* are wanted too, it removes what has ended meanwhile.
        """
        for key in self._memory.keys_of(owner):
            stream = self._memory.get(key)
            if isinstance(stream, OwnStream) and not stream.created and stream.end is None:
                found[key] = stream.about
            elif stream is not None and stream.end is not None and not ended:
                found.pop(key, None)  # its end is not in the store yet

    # Begin ------------------------------------------------------------------------------------------------------------

    async def begin(self, key: str, about: About, digest: str) -> OwnStream | None:
        """A stream in memory; `None` if *key* exists there."""
        stream = await self._memory.create(key, about=about, digest=digest, retain=True)
        return stream if isinstance(stream, OwnStream) else None

    async def begin_stored(self, key: str, about: About, digest: str, *, writer: str) -> OwnStream | None:
        """The same, once the store has it too: it is asked first, because another process may have *key*.

        Raises `KeyReused` if that is with another *digest*.
        """
        new = self._new(writer, digest, about)
        try:
            state = await self._store.create(key, new)
            stream = None if state is not None else await self.begin(key, about, digest)
        except BaseException:  # it may have been stored
            self._spawn(self._abandon(key, writer))
            raise
        if state is not None and state.digest != digest:
            raise KeyReused("This Idempotency-Key was used before with another body.")
        return stream

    def _new(self, writer: str, digest: str, about: About) -> NewStream:
        """What the store is told of a stream. Raises `LogUnavailable` if the cipher does not encrypt it."""
        try:
            return self._writes.new_stream(writer, digest, about)
        except Exception as error:
            logger.exception("stream %s cannot be stored", about.id)
            raise LogUnavailable("The stream could not be stored.") from error

    async def _abandon(self, key: str, writer: str) -> None:
        """Ends a stream that may have been stored and that nobody produces."""
        write = self._writes.with_end(Write(key=key, writer=writer, place=0, count=0), _ABANDONED)
        await until_answered(lambda: self._store.write([write]))

    def store_soon(self, stream: OwnStream) -> None:
        """Tries to store a new stream, at once and by itself."""
        stream.creating = True
        self._spawn(self._create(stream))

    async def _create(self, stream: OwnStream) -> None:
        try:
            await self._writing.create(stream)
        except LogUnavailable:
            stream.refused = True
            stream.changed()
        finally:
            stream.creating = False
        if stream.behind:
            self._writing.mark(stream)

    # What a stream needs ----------------------------------------------------------------------------------------------

    def mark(self, stream: OwnStream) -> None:
        """See `Mirroring.mark`."""
        self._writing.mark(stream)

    def let_go(self, stream: OwnStream) -> None:
        """See `Mirroring.let_go`."""
        self._memory.let_go(stream)

    def look_for_readers(self, stream: OwnStream) -> None:
        """See `Mirroring.look_for_readers`."""
        self._spawn(self._look_for_readers(stream))

    async def _look_for_readers(self, stream: OwnStream) -> None:
        joins = stream.joins
        try:
            (state,) = await self._store.states([stream.key])
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

    # After messages may have been missed, or the store has forgotten something ----------------------------------------

    async def look(self) -> None:
        """Looks at all of them in the store."""
        streams = [stream for stream in self.all() if not stream.unstorable]
        for first in range(0, len(streams), _MANY):
            some = streams[first : first + _MANY]
            await until_answered(lambda some=some: self.store_again(some))  # type: ignore[misc]

    async def store_again(self, streams: Sequence[OwnStream], *, whole: bool = False) -> None:
        """Looks at some in the store: whether they are there, are to be stopped, are read, are still ours.

        With *whole* those that had been stored with their ends are stored again too, if they are not there.
        """
        states = await self._store.states([stream.key for stream in streams])
        for stream, state in zip(streams, states, strict=True):
            if state is None:
                if stream.created and (whole or not stream.is_whole):
                    stream.forgotten()
            elif not state.kept:  # erased, or expired a little earlier
                await self.drop(stream.key)
            elif state.writer != stream.writer:
                if stream.created:
                    await stream.lose()
            elif not state.end:
                stream.read_elsewhere(state.readers)
                if state.stop:
                    stream.stop(state.stop)

    def keep_readers(self, processes: Set[str]) -> None:
        """Only *processes* are there: all others, which have died or closed without a word, read no stream any more."""
        gone = [(stream, process) for stream in self.all() for process in stream.elsewhere - processes]
        if gone:
            self._spawn(self._take_out(gone))

    async def _take_out(self, readers: Sequence[tuple[OwnStream, str]]) -> None:
        for stream, process in readers:
            await self._store.leave(stream.key, process, tell=b"")
            stream.parted(process)

    async def drop(self, key: str) -> None:
        """Drops what this process has of a stream that was erased: its own copy, and the readers of it."""
        if (stream := self._memory.get(key)) is not None and stream.end is not None:
            await self._memory.drop(stream)
        await self._mirrors.cut(key)
