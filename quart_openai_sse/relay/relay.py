"""The engine: one producer for each stream, any number of readers; start, read, stop, find, drain."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from functools import partial
from hashlib import sha256
from typing import Any, cast

from msgspec import structs

from quart_openai_sse.config import Config
from quart_openai_sse.errors import (
    ConfigurationError,
    Draining,
    InvalidRequest,
    LogUnavailable,
    StreamNotFound,
)
from quart_openai_sse.limits import SharedCounts
from quart_openai_sse.limits.memory import MemoryAccount
from quart_openai_sse.logs import Reader, StreamLog, Writer
from quart_openai_sse.logs.endings import wait_for_ends
from quart_openai_sse.logs.entries import About
from quart_openai_sse.observers import StreamRecord
from quart_openai_sse.principal import Principal, owner_key, stream_key
from quart_openai_sse.producers import CLEAN_UP
from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.protocol.member_rules import MemberRules
from quart_openai_sse.protocol.requests import body_size, check_idempotency_key, digest, validate
from quart_openai_sse.protocol.trace_context import current_trace_id
from quart_openai_sse.relay.admission import Admission, Place
from quart_openai_sse.relay.background import Background
from quart_openai_sse.relay.choice import choose_producer
from quart_openai_sse.relay.claims import Claims
from quart_openai_sse.relay.hooks import HookCalls, Hooks
from quart_openai_sse.relay.lost_streams import LostStreams
from quart_openai_sse.relay.readers import Readers
from quart_openai_sse.relay.running import RunningStream, StreamHandle
from quart_openai_sse.relay.shares import Share
from quart_openai_sse.relay.streams import SHUTTING_DOWN, Streams
from quart_openai_sse.upstreams import Upstream
from quart_openai_sse.upstreams.several import Upstreams

logger = logging.getLogger("quart_openai_sse")


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
        self._members = MemberRules(allowed=config.allowed_members, denied=config.denied_members)
        self.readers = Readers(config, self.admission.sharing)
        self.draining = False
        """Whether a drain has begun."""
        self.refusing = False
        """Whether new streams are refused: the grace of a drain is over."""
        self._grace_is_over = asyncio.Event()
        self._log_is_open = False
        self._create_upstream = create_upstream
        self._own_upstream: Upstreams | None = None
        self._override: Upstreams | None = None
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
        self._claims = Claims(log, self.streams)
        self._lost_streams = LostStreams(config, hooks=hooks, calls=self.hook_calls, memory=self.memory, scope=scope)

    # Start ------------------------------------------------------------------------------------------------------

    async def start(
        self,
        body: Mapping[str, Any],
        *,
        principal: Principal,
        size: int | None = None,
        retain: bool = True,
        read: bool = False,
        waits: bool = False,
        idempotency_key: str = "",
        thread: str = "",
        metadata: Mapping[str, Any] | None = None,
        allowed_models: Collection[str] | None = None,
    ) -> StreamHandle:
        """Starts the stream that *body* asks for, or attaches to the one that *idempotency_key* names.

        *size* is the memory that *body* takes, in bytes, if that is known. The handle of a new stream has a reader if
        *read* is true, and without *retain* in any case. With *waits*, a response waits for the first output, for
        `commit_after` seconds; a retry upstream whose wait would end later is not begun.

        Every refusal is raised here: `Draining`, `InvalidRequest`, `ModelNotFound`, `TooManyStreams`, `TokensSpent`,
        `TooManyReaders`, `MemoryFull`, `KeyReused`, `LogUnavailable`, and whatever a `prepare` hook raises. On a shared
        log *metadata* must have passed `check_metadata`.
        """
        if self.refusing:
            raise Draining(SHUTTING_DOWN)
        body = validate(body, default_model=self.config.model)
        size = body_size(body) if size is None else size
        retain = retain or bool(idempotency_key)
        stream_id = _id_of_key(idempotency_key, principal) if idempotency_key else secrets.token_hex(16)
        shared = retain and self.log.shared
        handle = self.handle(stream_id, principal)
        record = StreamRecord(
            id=handle.id,
            thread=thread,
            principal=str(principal),
            metadata=dict(metadata or {}),
            trace_id=current_trace_id(),
        )
        about = About(
            id=handle.id,
            owner=handle.owner,
            thread=thread,
            model=body["model"],
            created=time.time(),
            n=body.get("n") or 1,
        )
        fingerprint = digest(body) if idempotency_key else ""
        create = partial(self.log.create, handle.key, about=about, digest=fingerprint, retain=retain)
        await self.open()
        reads = stream_id if read and retain else ""
        reserve = partial(self.admission.reserve, principal, body, size=size, reads=reads)
        writer: Writer | None = None
        if not idempotency_key:
            place = reserve()
            if place.share is not None:
                await place.confirm()
        elif (claimed := await self._claims.claim(handle, reserve, create)) is None:
            return structs.replace(handle, attached=True)
        else:
            place, writer = claimed
        reader: Reader | None = None
        try:
            sent = body
            if self.hooks.prepare:
                body = await self._prepare(body, principal, place, size=size)
            record.model = body["model"]
            producer = choose_producer(
                body,
                principal,
                record,
                sent=sent,
                hooks=self.hooks,
                upstream=self.upstream,
                config=self.config,
                allowed=allowed_models,
                members=self._members,
                on_retry=partial(self.streams.observe, "retried", record),
                hold=place.hold,
                meter=place.spending,
                committed=time.monotonic() + self.config.commit_after if waits else None,
            )
            if writer is None:
                # `create` returns None only for a key in use, which a random key of 128 bits is not.
                writer = cast(Writer, await create())
            # Before the producer runs: a stream that does not linger must never be without its reader.
            if read or not retain:
                heartbeat = bool(body.get("stream"))
                reader = await self._open_reader(handle, heartbeat=heartbeat, counted=retain, share=place.share)
                handle = structs.replace(handle, reader=reader)
                record.readers = 1
            record.upstream = producer.upstream
            if self.refusing:  # since the first check
                raise Draining(SHUTTING_DOWN)
            stream = RunningStream(
                handle=handle,
                principal=principal,
                body=body,
                record=record,
                place=place,
                writer=writer,
                producer=producer,
                intake=Intake(
                    writer,
                    record,
                    assemble=self.config.max_bytes if self.hooks.on_end else 0,
                    n=body.get("n") or 1,
                    hold=place.hold,
                    charge=None if place.spending is None else place.spending.charge,
                ),
            )
            self.streams.run(stream, linger=self.config.linger if retain else 0, shared=shared)
        except BaseException as error:
            place.release()
            await self.streams.take_back(handle, writer, reader, error)
            raise
        return await self.streams.stored(stream) if shared else handle

    async def _prepare(
        self, body: dict[str, Any], principal: Principal, place: Place, *, size: int
    ) -> Mapping[str, Any]:
        """The request as the hooks leave it, which the place is measured by from now on."""
        body = await self.hooks.run_prepare(body, principal, calls=self.hook_calls)
        place.hold(body_size(body) - size)
        self.memory.check()
        if place.share is not None:
            await place.share.grow(body)
        elif place.spending is not None:
            place.spending.estimate(body)
        return body

    # The upstream -------------------------------------------------------------------------------------------------

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

    async def read(self, handle: StreamHandle, *, after: str = "", heartbeat: bool = True) -> Reader:
        """Opens a reader of the stream; the caller must close it by `readers.leave`.

        Raises what `StreamLog.read` raises, and `TooManyReaders`.
        """
        await self.open()
        reader = await self._open_reader(handle, after=after, heartbeat=heartbeat)
        if (stream := self.streams.get(handle.key)) is not None:
            stream.record.readers += 1
            stream.record.resumes += bool(after)
        return reader

    async def _open_reader(
        self,
        handle: StreamHandle,
        *,
        after: str = "",
        heartbeat: bool,
        counted: bool = True,
        share: Share | None = None,
    ) -> Reader:
        if counted:  # before the log is asked: others may be asking at the same time
            self.readers.reserve(handle)
            if self.admission.sharing is not None and (share is None or not share.pass_reader()):
                await self.readers.share(handle)
        try:
            seconds = self.config.keepalive or None if heartbeat else None
            reader = await self.log.read(handle.key, after=after, heartbeat=seconds)
        except BaseException:
            if counted:
                self.readers.give_back(handle)
            raise
        self.readers.add(reader, handle, counted=counted)
        return reader

    def leave_soon(self, reader: Reader, _task: object = None) -> None:
        """Closes a reader, for callers that cannot await: a task's done callback."""
        if reader in self.readers:
            self._background.hold(self.readers.leave(reader))

    def handle(self, stream_id: str, principal: Principal) -> StreamHandle:
        """The handle of a principal's stream, whether it exists or not: only the log knows that."""
        owner = owner_key(self._instance, principal)
        return StreamHandle(stream_id, stream_key(owner, stream_id), "" if principal.anonymous else owner)

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
        if not self._log_is_open:
            self.log.on_lost(self._lost_streams.end)
            await self.log.open()
            self._log_is_open = True
            if self.admission.sharing is not None:
                self.admission.sharing.open()

    async def ready(self) -> bool:
        """Whether a proxy should send requests here: the log can be reached, and no drain has begun."""
        try:
            await self.open()
            return not self.draining and await self.log.ready()
        except LogUnavailable:
            return False
        except ConfigurationError:  # which has not shown before: the server started while the log was unavailable
            logger.exception("the stream log cannot be used")
            return False

    async def drain(self, timeout: float, *, grace: float = 0) -> None:
        """Waits *timeout* seconds for the running streams, and ends the rest as failed.

        It is not ready from now on; new streams are refused after *grace* of these seconds, or as soon as another
        drain without a grace begins. Returns when every reader has had its last event, or did not take it in time.
        """
        until = time.monotonic() + timeout
        self.draining = True
        if grace > 0 and not self.refusing:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._grace_is_over.wait()
        self.refusing = True
        self._grace_is_over.set()
        await self.streams.drain(max(0.0, until - time.monotonic()))
        if not await self.readers.wait_for_none(CLEAN_UP):
            logger.warning("%d readers have not had their last event", len(self.readers))

    async def aclose(self) -> None:
        """Ends the running streams, and closes the log and the connections of the upstream and of hooks."""
        async with AsyncExitStack() as closing:
            closing.callback(self.memory.close)
            closing.push_async_callback(self._close_log)
            if self.admission.sharing is not None:
                closing.push_async_callback(self.admission.sharing.aclose)
            for upstream in (self._own_upstream, self._override):
                if upstream is not None:
                    closing.push_async_callback(upstream.aclose)
            for aclose in self.hooks.closers():
                closing.push_async_callback(aclose)
            await self.drain(0)
            await self.streams.aclose()
            await self._background.wait(CLEAN_UP)

    async def _close_log(self) -> None:
        self._log_is_open = False
        try:
            async with asyncio.timeout(CLEAN_UP):
                await self.log.aclose()
        except TimeoutError:
            logger.warning("the stream log could not be closed in time")


def _id_of_key(idempotency_key: str, principal: Principal) -> str:
    """The id of the stream that an `Idempotency-Key` names."""
    if principal.anonymous:
        raise InvalidRequest("Anonymous callers cannot use Idempotency-Key.", param="Idempotency-Key")
    return sha256(b"idempotency-key:" + check_idempotency_key(idempotency_key).encode()).hexdigest()[:32]
