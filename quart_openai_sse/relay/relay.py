"""The engine: one producer for each stream, any number of readers; start, read, stop, find, drain."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.errors import InvalidRequest, StreamNotFound
from quart_openai_sse.limits import SharedCounts
from quart_openai_sse.limits.memory import MemoryAccount
from quart_openai_sse.logs import Reader, StreamLog
from quart_openai_sse.logs.endings import wait_for_ends
from quart_openai_sse.logs.entries import About
from quart_openai_sse.principal import Principal, owner_key
from quart_openai_sse.producers import CLEAN_UP
from quart_openai_sse.relay.admission import Admission
from quart_openai_sse.relay.background import Background
from quart_openai_sse.relay.current_upstream import CurrentUpstream
from quart_openai_sse.relay.drain import Drain
from quart_openai_sse.relay.hooks import HookCalls, Hooks
from quart_openai_sse.relay.lost_streams import LostStreams
from quart_openai_sse.relay.opening import Opening
from quart_openai_sse.relay.readers import Readers
from quart_openai_sse.relay.reading import Reading
from quart_openai_sse.relay.running import StreamHandle, handle_of
from quart_openai_sse.relay.starts import Starts
from quart_openai_sse.relay.streams import Streams
from quart_openai_sse.upstreams import Upstream
from quart_openai_sse.upstreams.several import Upstreams


class Relay:
    """All streams of one instance on one event loop. *scope* is entered around producers and `on_end`.

    *create_upstream* is called when the upstream is first needed, and not at all while `use` names another one. With
    *counts* the limits of a principal hold for all workers that share them.
    """

    def __init__(
        self,
        *,
        config: Config,
        log: StreamLog,
        create_upstream: Callable[[], Upstream],
        hooks: Hooks,
        instance: str = "",
        counts: SharedCounts | None = None,
        scope: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext,
    ) -> None:
        self.config = config
        self.log = log
        self.hooks = hooks
        self.memory = MemoryAccount(config.max_memory, log)
        self.admission = Admission(config, self.memory, counts=counts, instance=instance)
        self.readers = Readers(config, self.admission.sharing)
        self._reading = Reading(config, log, self.readers, self.admission.sharing)
        self._upstream = CurrentUpstream(create_upstream)
        self._instance = instance
        self._background = Background()
        self.hook_calls = HookCalls(config, self._background)
        self.streams = Streams(
            config,
            shared=log.shared,
            hooks=hooks,
            calls=self.hook_calls,
            readers=self.readers,
            background=self._background,
            scope=scope,
        )
        lost = LostStreams(config, hooks=hooks, calls=self.hook_calls, memory=self.memory, scope=scope)
        self._opening = Opening(log, self.admission.sharing, lost.end)
        self._drain = Drain(self.streams, self.readers)
        self.start = Starts(
            config,
            log,
            instance=instance,
            hooks=hooks,
            calls=self.hook_calls,
            memory=self.memory,
            admission=self.admission,
            streams=self.streams,
            upstream=self._upstream,
            opening=self._opening,
            reading=self._reading,
            drain=self._drain,
        ).start
        """Starts a stream, or attaches to the one that *idempotency_key* names.

        *size* is the memory that *body* takes, in bytes, if that is known. The handle of a new stream has a reader if
        *read* is true, and without *retain* in any case. With *waits*, a response waits for the first output, for
        `commit_after` seconds; a retry upstream whose wait would end later is not begun.

        Every refusal is raised here: `Draining`, `InvalidRequest`, `ModelNotFound`, `TooManyStreams`, `TokensSpent`,
        `TooManyReaders`, `MemoryFull`, `KeyReused`, `LogUnavailable`, and whatever a `prepare` hook raises. On a shared
        log *metadata* must have passed `check_metadata`.
        """

    # The upstream -------------------------------------------------------------------------------------------------

    @property
    def upstream(self) -> Upstreams:
        """The upstream of new streams."""
        return self._upstream.get()

    def use(self, upstream: Upstream | None) -> None:
        """Sends the requests of new streams to *upstream* from now on; with `None`, to the engine's own."""
        self._upstream.use(upstream)

    # Read, stop, find -------------------------------------------------------------------------------------------

    async def read(self, handle: StreamHandle, *, after: str = "", heartbeat: bool = True) -> Reader:
        """Opens a reader of the stream; the caller must close it by `readers.leave`.

        Raises what `StreamLog.read` raises, and `TooManyReaders`.
        """
        await self.open()
        reader = await self._reading.open(handle, after=after, heartbeat=heartbeat)
        if (stream := self.streams.get(handle.key)) is not None:
            stream.record.readers += 1
            stream.record.resumes += bool(after)
        return reader

    def leave_soon(self, reader: Reader, _task: object = None) -> None:
        """Closes a reader, for callers that cannot await: a task's done callback."""
        if reader in self.readers:
            self._background.hold(self.readers.leave(reader))

    def handle(self, stream_id: str, principal: Principal) -> StreamHandle:
        """The handle of a principal's stream, whether it exists or not: only the log knows that."""
        return handle_of(stream_id, principal, instance=self._instance)

    async def stop(self, handle: StreamHandle, reason: str) -> None:
        """Asks the stream to stop; nothing happens if it has ended. Raises `StreamNotFound`."""
        await self.open()
        await self.log.stop(handle.key, reason)

    async def erase(self, handle: StreamHandle, reason: str) -> None:
        """Stops the stream, and removes all that is kept of it, on every worker: it is `StreamExpired` from then on.

        Raises `StreamNotFound`, and `LogUnavailable` also if the stream does not end within some seconds.
        """
        await self.stop(handle, reason)
        await wait_for_ends(self.log, [handle.key])
        with suppress(StreamNotFound):  # of a plain call, of which nothing is kept
            await self.log.erase(handle.key)

    async def forget(self, principal: Principal) -> None:
        """Stops the principal's streams, and removes all that the log keeps of them, on every worker.

        Plain calls on other workers go on; nothing of them is kept. Raises `LogUnavailable`, and `InvalidRequest` for
        an anonymous caller: such callers are not told apart.
        """
        if principal.anonymous:
            raise InvalidRequest("Streams of anonymous callers cannot be erased: nothing tells the callers apart.")
        await self.open()
        owner = owner_key(self._instance, principal)
        self.streams.stop_all(owner, "stopped by its owner")
        await self.log.forget(owner)

    async def find(self, principal: Principal, *, thread: str | None = None) -> list[About]:
        """The principal's running streams that can be resumed, newest first; none for anonymous callers."""
        if principal.anonymous:
            return []
        await self.open()
        return await self.log.find(owner_key(self._instance, principal), thread=thread)

    # Open and shut down -----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Opens the log, unless that is done. Raises `LogUnavailable`."""
        await self._opening.open()

    @property
    def draining(self) -> bool:
        """Whether a drain has begun."""
        return self._drain.begun

    @property
    def refusing(self) -> bool:
        """Whether new streams are refused: the grace of a drain is over."""
        return self._drain.refusing

    async def ready(self) -> bool:
        """Whether a proxy should send requests here: the log can be reached, and no drain has begun."""
        return not self.draining and await self._opening.ready()

    async def drain(self, timeout: float, *, grace: float = 0) -> None:
        """Waits *timeout* seconds for the running streams, and ends the rest as failed.

        It is not ready from now on; new streams are refused after *grace* of these seconds, or as soon as another
        drain without a grace begins. Returns when every reader has had its last event, or did not take it in time.
        """
        await self._drain.run(timeout, grace=grace)

    async def aclose(self) -> None:
        """Ends the running streams, and closes the log and the connections of the upstream and of hooks."""
        async with AsyncExitStack() as closing:
            closing.callback(self.memory.close)
            closing.push_async_callback(self._opening.aclose)
            if self.admission.sharing is not None:
                closing.push_async_callback(self.admission.sharing.aclose)
            for upstream in self._upstream.to_close():
                closing.push_async_callback(upstream.aclose)
            for aclose in self.hooks.closers():
                closing.push_async_callback(aclose)
            await self.drain(0)
            await self.streams.aclose()
            await self._background.wait(CLEAN_UP)
