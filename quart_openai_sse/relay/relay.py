"""The engine: one producer per stream, any number of readers; start, read, stop, drain."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import copy_context
from functools import partial
from hashlib import sha256
from typing import Any, cast

from quart_openai_sse.config import Config
from quart_openai_sse.errors import (
    Draining,
    InvalidRequest,
    ModelNotFound,
    OpenAISSEError,
    ServerShutdown,
    StartAbandoned,
    TokensSpent,
    TooManyStreams,
)
from quart_openai_sse.limits.tokens import TokenBudget
from quart_openai_sse.logs import Reader, StreamLog, Writer
from quart_openai_sse.logs.entries import End
from quart_openai_sse.observers import APP, EventKind, StreamRecord
from quart_openai_sse.principal import Principal, stream_key
from quart_openai_sse.producers import Producer
from quart_openai_sse.producers.app_model import AppModel, pass_on
from quart_openai_sse.producers.calls import Call
from quart_openai_sse.producers.intake import Attempts, Intake
from quart_openai_sse.producers.upstream_answer import UpstreamAnswer
from quart_openai_sse.producers.upstream_stream import UpstreamStream, streaming_body
from quart_openai_sse.protocol.requests import check_idempotency_key, digest, validate
from quart_openai_sse.relay.background import Background
from quart_openai_sse.relay.hooks import Hooks
from quart_openai_sse.relay.running import CLEAN_UP, RunningStream, StreamHandle
from quart_openai_sse.upstreams import Upstream
from quart_openai_sse.upstreams.several import Upstreams

logger = logging.getLogger("quart_openai_sse")

_FEW = 8  # streams that are stopped in one turn of the event loop because nobody reads them


class Relay:
    """All streams of one instance on one event loop. *scope* is entered around producers and `on_end`."""

    def __init__(
        self,
        *,
        config: Config,
        log: StreamLog,
        upstream: Upstream,
        hooks: Hooks,
        instance: str = "",
        scope: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext,
    ) -> None:
        self.config = config
        self.log = log
        self.upstream = self._own_upstream = Upstreams.of(upstream)
        self.hooks = hooks
        self.draining = False
        self._instance = instance
        self._scope = scope
        self._live: dict[str, RunningStream] = {}
        self._per_principal: Counter[tuple[str, str]] = Counter()
        self._readers: set[Reader] = set()
        self._no_readers = asyncio.Event()
        self._no_readers.set()
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: deque[tuple[RunningStream, int]] = deque()
        """With how many readers each has had."""
        self._seeing_off = False
        self._background = Background()
        limit = config.tokens_per_principal
        self._budget = None if limit is None else TokenBudget(limit, config.token_window)

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
        models: Collection[str] | None = None,
    ) -> StreamHandle:
        """Starts the stream that *body* asks for, or attaches to the one its *idempotency_key* names.

        Every refusal is raised here: `Draining`, `InvalidRequest`, `ModelNotFound`, `TooManyStreams`, `KeyReused`,
        and whatever a `prepare` hook raises.
        """
        if self.draining:
            raise Draining("The server is shutting down.")
        body = validate(body, default_model=self.config.model)
        retain = retain or bool(idempotency_key)
        handle = self.find(_stream_id(idempotency_key, principal), principal)
        fingerprint = digest(body) if idempotency_key else ""
        create = partial(self.log.create, handle.key, digest=fingerprint, retain=retain)
        writer = await create() if idempotency_key else None
        if idempotency_key and writer is None:
            return StreamHandle(handle.id, handle.key, attached=True)
        live = RunningStream(handle, principal, retain=retain)
        live.record.thread = thread
        live.record.metadata = dict(metadata or {})
        reserved = False
        try:
            self._reserve(principal)
            reserved = True
            live.body = await self.hooks.run_prepare(body, principal)
            live.producer = self._producer(live, models)
            # A key of 128 random bits is nobody else's.
            live.writer = writer or cast(Writer, await create())
            # Before the producer runs: a stream that does not linger must never be without its reader.
            if not retain:
                reader = await self.read(handle.key, heartbeat=bool(body.get("stream")))
                live.handle = StreamHandle(handle.id, handle.key, reader=reader)
                live.record.readers = 1
            if self.draining:  # since we looked
                raise Draining("The server is shutting down.")
        except BaseException as error:
            if live.handle.reader is not None:
                await self.leave(live.handle.reader)
            if reserved:
                self._release(principal)
            if writer is not None:
                refusal = error if isinstance(error, OpenAISSEError) else StartAbandoned()
                await writer.close(End("failed", refusal.code or "", refusal))
            raise
        self._run(live)
        return live.handle

    def _reserve(self, principal: Principal) -> None:
        """Takes a place among the running streams. Nothing is awaited between looking and taking."""
        if self._per_principal.total() >= self.config.max_streams:
            raise TooManyStreams("Too many streams are running.")
        who = (principal.realm, principal.id)
        if self._budget is not None and self._budget.left(who, time.monotonic()) <= 0:
            raise _tokens_spent(self._budget, who)
        limit = principal.max_streams
        if limit is None and not principal.anonymous:
            limit = self.config.max_streams_per_principal
        if limit is not None and self._per_principal[who] >= limit:
            raise TooManyStreams("You have too many streams running.")
        self._per_principal[who] += 1

    def _release(self, principal: Principal) -> None:
        who = (principal.realm, principal.id)
        self._per_principal[who] -= 1
        if not self._per_principal[who]:
            del self._per_principal[who]

    def _producer(self, live: RunningStream, models: Collection[str] | None) -> Producer:
        config, body, principal = self.config, live.body, live.principal
        name: str = body["model"]
        live.record.model = name
        model = self.hooks.models.get(name)
        allowed = models if models is not None else config.models if model is None else None
        if (allowed is not None and name not in allowed) or not principal.may_ask(name):
            raise ModelNotFound(f"The model {name!r} does not exist or is not allowed.")
        attempts = Attempts(live.record, on_retry=lambda: self._observe("retried", live.record))
        transforms = self.hooks.transforms
        if model is not None or transforms:
            return AppModel(
                model or pass_on,
                body,
                stream_id=live.handle.id,
                principal=principal,
                metadata=live.record.metadata,
                call=partial(self._call, principal, attempts),
                transforms=transforms,
                upstream=self.upstream.name if model is None else APP,
            )
        if body.get("stream"):
            return UpstreamStream(
                self.upstream,
                body,
                principal=principal,
                attempts=attempts,
                include_usage=config.include_usage,
                max_event=config.max_event,
            )
        return UpstreamAnswer(
            self.upstream,
            body,
            principal=principal,
            attempts=attempts,
            max_bytes=config.max_bytes,
        )

    def _call(self, principal: Principal, attempts: Attempts, body: Mapping[str, Any]) -> Call:
        return Call(
            self.upstream,
            streaming_body(body, include_usage=self.config.include_usage),
            principal=principal,
            attempts=attempts,
            max_event=self.config.max_event,
            max_bytes=self.config.max_bytes,
        )

    # Run --------------------------------------------------------------------------------------------------------

    def _run(self, live: RunningStream) -> None:
        live.record.upstream = live.producer.upstream
        live.intake = Intake(
            live.writer,
            live.record,
            assemble=self.config.max_bytes if self.hooks.on_end else 0,
            on_first=lambda: live.context.run(self._observe, "first_chunk", live.record),
            charge=self._charge(live),
        )
        self._live[live.handle.key] = live
        live.task = asyncio.get_running_loop().create_task(self._stream(live))
        self._observe("started", live.record)

    def _charge(self, live: RunningStream) -> Callable[[], None] | None:
        """What is called after each batch, and raises when the principal has no tokens left."""
        budget, who = self._budget, (live.principal.realm, live.principal.id)
        if budget is None:
            return None
        charged = 0

        def charge() -> None:
            nonlocal charged
            usage = live.producer.completion.usage or {}
            tokens = usage.get("total_tokens")
            if not isinstance(tokens, int) or isinstance(tokens, bool):
                tokens = live.record.chunks
            now = time.monotonic()
            budget.spend(who, tokens - charged, now)
            charged = tokens
            # An answer that is finished is not taken away again for what its last words cost.
            if budget.left(who, now) < 0 and not live.producer.completion.finished:
                raise _tokens_spent(budget, who)

        return charge

    async def _stream(self, live: RunningStream) -> None:
        """The life of one stream: it ends exactly once, and its place is free when it has."""
        end: End | None = None
        try:
            async with self._scope():
                end = await self._produce(live)
                live.complete_record(end)
                if self.hooks.on_end:
                    timeout = self.config.on_end_timeout
                    # Before the readers see the end: who is told "completed" can rely on what was stored.
                    await self.hooks.run_on_end(live.stream_end(end), timeout=timeout, background=self._background)
        except Exception:
            logger.exception("stream %s: its scope raised", live.handle.id)
        finally:
            end = end or live.failed(OpenAISSEError("The stream failed."))
            live.complete_record(end)
            try:
                await live.writer.close(end)
            finally:
                del self._live[live.handle.key]
                self._release(live.principal)
                self._observe("ended", live.record)

    async def _produce(self, live: RunningStream) -> End:
        """Runs the producer until it is over, or somebody or something interrupts it."""
        live.context = copy_context()
        live.writer.watch(
            stopped=lambda reason: live.interrupt("stopped", reason),
            left=lambda: self._left(live),
            linger=self.config.linger if live.retain else 0,
        )
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.config.max_duration, self._expire)
        return await live.produce(self._background)

    def _expire(self) -> None:
        """Ends what has run for too long: one timer for all, set for the oldest that runs."""
        now = time.monotonic()
        for live in self._live.values():
            due = live.intake.began + self.config.max_duration
            if due > now:
                self._timer = asyncio.get_running_loop().call_later(due - now, self._expire)
                return
            live.expire()
        self._timer = None

    def _left(self, live: RunningStream) -> None:
        """Nobody reads a stream any more. When very many leave at once, nobody else waits until all are seen off."""
        self._leaving.append((live, live.record.readers))
        if not self._seeing_off:
            self._see_off()

    def _see_off(self) -> None:
        """Stops a few of the streams that nobody reads, and the others in the next turns of the event loop."""
        few = [self._leaving.popleft() for _ in range(min(len(self._leaving), _FEW))]
        for live, readers in few:
            if live.record.readers == readers:  # or somebody has come meanwhile
                live.interrupt("stopped", "client_left")
        self._seeing_off = bool(few)
        if few:
            asyncio.get_running_loop().call_soon(self._see_off)

    def _observe(self, kind: EventKind, record: StreamRecord) -> None:
        self.hooks.observe(kind, record, background=self._background)

    def use(self, upstream: Upstream | None) -> None:
        """From now on asks *upstream* instead of its own; `None`: its own again."""
        self.upstream = self._own_upstream if upstream is None else Upstreams.of(upstream)

    # Read, stop, find -------------------------------------------------------------------------------------------

    async def read(self, key: str, *, after: str = "", heartbeat: bool = True) -> Reader:
        """A reader of the stream, to be given to `leave`. Raises what `StreamLog.read` raises."""
        reader = await self.log.read(key, after=after, heartbeat=self.config.keepalive or None if heartbeat else None)
        self._readers.add(reader)
        self._no_readers.clear()
        if (live := self._live.get(key)) is not None:
            live.record.readers += 1
            live.record.resumes += bool(after)
        return reader

    async def leave(self, reader: Reader) -> None:
        """Ends the reading. May be called twice."""
        self._readers.discard(reader)
        if not self._readers:
            self._no_readers.set()
        await reader.aclose()

    def leave_soon(self, reader: Reader) -> None:
        """`leave`, from where nothing can be awaited."""
        if reader in self._readers:
            self._background.hold(self.leave(reader))

    def find(self, stream_id: str, principal: Principal) -> StreamHandle:
        """The handle of a principal's stream, whether it exists or not: that, the log says."""
        return StreamHandle(stream_id, stream_key(self._instance, principal, stream_id))

    async def stop(self, handle: StreamHandle, reason: str) -> None:
        """Asks the stream to stop; nothing happens if it has ended. Raises `StreamNotFound`."""
        await self.log.stop(handle.key, reason)

    def running(self, principal: Principal, *, thread: str | None = None) -> list[RunningStream]:
        """The principal's running streams that can be resumed, newest first. Anonymous callers share nothing."""
        who = (principal.realm, principal.id)
        return [
            live
            for live in reversed(self._live.values())
            if live.retain
            and not principal.anonymous
            and (live.principal.realm, live.principal.id) == who
            and (thread is None or live.record.thread == thread)
        ]

    # Shut down --------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float) -> None:
        """Starts nothing new, lets what runs end for *timeout* seconds, ends the rest as failed.

        Returns when every reader has had its last event, or gave up on it.
        """
        self.draining = True
        if tasks := [live.task for live in self._live.values()]:
            await asyncio.wait(tasks, timeout=timeout)
        for live in list(self._live.values()):
            live.interrupt("failed", "server_shutdown", ServerShutdown("The server is shutting down."))
        if tasks := [live.task for live in self._live.values()]:
            await asyncio.wait(tasks, timeout=CLEAN_UP + self.config.on_end_timeout)
        try:
            async with asyncio.timeout(CLEAN_UP):
                await self._no_readers.wait()
        except TimeoutError:
            logger.warning("%d readers have not had their last event", len(self._readers))

    async def aclose(self) -> None:
        """Ends what is left, and closes the upstream's connections."""
        await self.drain(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._background.wait(CLEAN_UP)
        await self.upstream.aclose()


def _tokens_spent(budget: TokenBudget, who: tuple[str, str]) -> TokensSpent:
    wait = budget.resets(who, time.monotonic())
    return TokensSpent(f"{budget.limit} tokens in {budget.window:g} seconds are all you have.", retry_after=wait)


def _stream_id(idempotency_key: str, principal: Principal) -> str:
    if not idempotency_key:
        return secrets.token_hex(16)
    if principal.anonymous:
        raise InvalidRequest("Anonymous callers can't use Idempotency-Key.", param="Idempotency-Key")
    return sha256(b"idempotency-key:" + check_idempotency_key(idempotency_key).encode()).hexdigest()[:32]
