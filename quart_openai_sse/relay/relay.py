"""The engine: one producer for each stream, any number of readers; start, read, stop, find, drain."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import copy_context
from functools import partial
from hashlib import sha256
from typing import Any, cast

from quart_openai_sse.config import Config
from quart_openai_sse.errors import Draining, InvalidRequest, OpenAISSEError, ServerShutdown, StartAbandoned
from quart_openai_sse.logs import Reader, StreamLog, Writer
from quart_openai_sse.logs.entries import End
from quart_openai_sse.observers import StreamRecord
from quart_openai_sse.principal import Principal, stream_key
from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.protocol.requests import check_idempotency_key, digest, validate
from quart_openai_sse.protocol.trace_context import current_trace_id
from quart_openai_sse.relay.admission import Admission, owner_of
from quart_openai_sse.relay.background import Background
from quart_openai_sse.relay.choice import choose_producer
from quart_openai_sse.relay.departures import Departures
from quart_openai_sse.relay.hooks import Hooks
from quart_openai_sse.relay.running import CLEAN_UP, RunningStream, StreamHandle
from quart_openai_sse.upstreams import Upstream
from quart_openai_sse.upstreams.several import Upstreams

logger = logging.getLogger("quart_openai_sse")


class Relay:
    """All streams of one instance on one event loop. *scope* is entered around producers and `on_end`.

    *create_upstream* is called when the upstream is first needed, and not at all while `use` names another one.
    """

    def __init__(
        self,
        *,
        config: Config,
        log: StreamLog,
        create_upstream: Callable[[], Upstream],
        hooks: Hooks,
        instance: str = "",
        scope: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext,
    ) -> None:
        self.config = config
        self.log = log
        self.hooks = hooks
        self.admission = Admission(config)
        self.draining = False
        self._create_upstream = create_upstream
        self._own_upstream: Upstreams | None = None
        self._override: Upstreams | None = None
        self._instance = instance
        self._scope = scope
        self._streams: dict[str, RunningStream] = {}
        """By their keys, oldest first."""
        self._departures = Departures()
        self._readers: set[Reader] = set()
        self._no_readers = asyncio.Event()
        self._no_readers.set()
        self._timer: asyncio.TimerHandle | None = None
        self._background = Background()
        self._observe = partial(hooks.observe, background=self._background)

    # Start ------------------------------------------------------------------------------------------------------

    async def start(
        self,
        body: Mapping[str, Any],
        *,
        principal: Principal,
        retain: bool = True,
        idempotency_key: str = "",
        thread: str = "",
        metadata: Mapping[str, Any] | None = None,
        allowed_models: Collection[str] | None = None,
    ) -> StreamHandle:
        """Starts the stream that *body* asks for, or attaches to the one that *idempotency_key* names.

        Every refusal is raised here: `Draining`, `InvalidRequest`, `ModelNotFound`, `TooManyStreams`, `TokensSpent`,
        `KeyReused`, and whatever a `prepare` hook raises.
        """
        if self.draining:
            raise Draining("The server is shutting down.")
        body = validate(body, default_model=self.config.model)
        retain = retain or bool(idempotency_key)
        handle = self.find(_stream_id(idempotency_key, principal), principal)
        record = StreamRecord(
            id=handle.id,
            thread=thread,
            principal=str(principal),
            metadata=dict(metadata or {}),
            trace_id=current_trace_id(),
        )
        fingerprint = digest(body) if idempotency_key else ""
        create = partial(self.log.create, handle.key, digest=fingerprint, retain=retain)
        writer = await create() if idempotency_key else None
        if idempotency_key and writer is None:
            return StreamHandle(handle.id, handle.key, attached=True)
        stream = RunningStream(handle, principal, record, retain=retain)
        reserved = False
        try:
            self.admission.reserve(principal)
            reserved = True
            stream.body = await self.hooks.run_prepare(body, principal)
            record.model = stream.body["model"]
            stream.producer = choose_producer(
                stream,
                hooks=self.hooks,
                upstream=self.upstream,
                config=self.config,
                allowed=allowed_models,
                on_retry=partial(self._observe, "retried", record),
            )
            # `create` returns None only for a key in use, which a random key of 128 bits is not.
            stream.writer = writer or cast(Writer, await create())
            # Before the producer runs: a stream that does not linger must never be without its reader.
            if not retain:
                reader = await self.read(handle.key, heartbeat=bool(body.get("stream")))
                stream.handle = StreamHandle(handle.id, handle.key, reader=reader)
                record.readers = 1
            if self.draining:  # since the first check
                raise Draining("The server is shutting down.")
        except BaseException as error:
            if stream.handle.reader is not None:
                await self.leave(stream.handle.reader)
            if reserved:
                self.admission.release(principal)
            if writer is not None:
                refusal = error if isinstance(error, OpenAISSEError) else StartAbandoned()
                await writer.close(End("failed", refusal.code or "", refusal))
            raise
        self._run(stream)
        return stream.handle

    # Run --------------------------------------------------------------------------------------------------------

    def _run(self, stream: RunningStream) -> None:
        stream.record.upstream = stream.producer.upstream
        stream.intake = Intake(
            stream.writer,
            stream.record,
            assemble=self.config.max_bytes if self.hooks.on_end else 0,
            charge=self.admission.meter(stream),
        )
        self._streams[stream.handle.key] = stream
        stream.task = asyncio.get_running_loop().create_task(self._stream(stream))
        self._observe("started", stream.record)

    async def _stream(self, stream: RunningStream) -> None:
        """The life of one stream: it ends exactly once, and its slot is free afterwards."""
        end: End | None = None
        try:
            async with self._scope():
                end = await self._produce(stream)
                if self.hooks.on_end:
                    stream.complete_record(end)
                    timeout = self.config.on_end_timeout
                    # Before the readers see the end: a client that reads "completed" can rely on what was stored.
                    await self.hooks.run_on_end(stream.stream_end(end), timeout=timeout, background=self._background)
        except Exception:
            logger.exception("stream %s: the app context raised", stream.handle.id)
        finally:
            end = end or stream.failed(OpenAISSEError("The stream failed."))
            stream.complete_record(end)
            try:
                await stream.writer.close(end)
            finally:
                del self._streams[stream.handle.key]
                self.admission.release(stream.principal)
                self._observe("ended", stream.record)

    async def _produce(self, stream: RunningStream) -> End:
        """Runs the producer until it is done or interrupted."""
        if self.hooks.observers:
            # In a copy of the task's context: upstream data arrives in the context of the connection.
            stream.intake.on_first = partial(copy_context().run, self._observe, "first_chunk", stream.record)
        stream.writer.watch(
            stopped=partial(stream.interrupt, "stopped"),
            left=partial(self._departures.add, stream),
            linger=self.config.linger if stream.retain else 0,
        )
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.config.max_duration, self._expire)
        return await stream.produce(self._background)

    def _expire(self) -> None:
        """Ends the streams that ran for too long. One timer serves all: it is set for the oldest."""
        now = time.monotonic()
        for stream in self._streams.values():
            due = stream.intake.began + self.config.max_duration
            if due > now:
                self._timer = asyncio.get_running_loop().call_later(due - now, self._expire)
                return
            stream.expire()
        self._timer = None

    @property
    def upstream(self) -> Upstreams:
        """The upstream of new streams."""
        if self._override is not None:
            return self._override
        if self._own_upstream is None:
            self._own_upstream = Upstreams.of(self._create_upstream())
        return self._own_upstream

    def use(self, upstream: Upstream | None) -> None:
        """Sends the requests of new streams to *upstream* from now on; with `None`, to the engine's own."""
        self._override = None if upstream is None else Upstreams.of(upstream)

    # Read, stop, find -------------------------------------------------------------------------------------------

    async def read(self, key: str, *, after: str = "", heartbeat: bool = True) -> Reader:
        """Opens a reader of the stream; the caller must pass it to `leave`. Raises what `StreamLog.read` raises."""
        reader = await self.log.read(key, after=after, heartbeat=self.config.keepalive or None if heartbeat else None)
        self._readers.add(reader)
        self._no_readers.clear()
        if (stream := self._streams.get(key)) is not None:
            stream.record.readers += 1
            stream.record.resumes += bool(after)
        return reader

    async def leave(self, reader: Reader) -> None:
        """Ends the reading. May be called twice."""
        self._readers.discard(reader)
        if not self._readers:
            self._no_readers.set()
        await reader.aclose()

    def leave_soon(self, reader: Reader) -> None:
        """`leave`, for callers that cannot await."""
        if reader in self._readers:
            self._background.hold(self.leave(reader))

    def find(self, stream_id: str, principal: Principal) -> StreamHandle:
        """The handle of a principal's stream, whether it exists or not: only the log knows that."""
        return StreamHandle(stream_id, stream_key(self._instance, principal, stream_id))

    async def stop(self, handle: StreamHandle, reason: str) -> None:
        """Asks the stream to stop; nothing happens if it has ended. Raises `StreamNotFound`."""
        await self.log.stop(handle.key, reason)

    def running(self, principal: Principal, *, thread: str | None = None) -> list[RunningStream]:
        """The principal's running streams that can be resumed, newest first; none for anonymous callers."""
        if principal.anonymous:
            return []
        owner = owner_of(principal)
        return [
            stream
            for stream in reversed(self._streams.values())
            if stream.retain
            and owner_of(stream.principal) == owner
            and (thread is None or stream.record.thread == thread)
        ]

    # Shut down --------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float) -> None:
        """Starts no new streams, waits *timeout* seconds for the running ones, and ends the rest as failed.

        Returns when every reader has had its last event, or did not take it in time.
        """
        self.draining = True
        if tasks := [stream.task for stream in self._streams.values()]:
            await asyncio.wait(tasks, timeout=timeout)
        for stream in list(self._streams.values()):
            stream.interrupt("failed", "server_shutdown", ServerShutdown("The server is shutting down."))
        if tasks := [stream.task for stream in self._streams.values()]:
            await asyncio.wait(tasks, timeout=CLEAN_UP + self.config.on_end_timeout)
        try:
            async with asyncio.timeout(CLEAN_UP):
                await self._no_readers.wait()
        except TimeoutError:
            logger.warning("%d readers have not had their last event", len(self._readers))

    async def aclose(self) -> None:
        """Ends the running streams, and closes the upstream's connections."""
        await self.drain(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._background.wait(CLEAN_UP)
        for upstream in (self._own_upstream, self._override):
            if upstream is not None:
                await upstream.aclose()


def _stream_id(idempotency_key: str, principal: Principal) -> str:
    if not idempotency_key:
        return secrets.token_hex(16)
    if principal.anonymous:
        raise InvalidRequest("Anonymous callers cannot use Idempotency-Key.", param="Idempotency-Key")
    return sha256(b"idempotency-key:" + check_idempotency_key(idempotency_key).encode()).hexdigest()[:32]
