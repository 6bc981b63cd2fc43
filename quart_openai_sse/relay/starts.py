"""Starting streams: what a request asks for, its place, its producer, and its reader."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Mapping
from functools import partial
from hashlib import sha256
from typing import Any, cast

import msgspec
from msgspec import structs

from quart_openai_sse.config import Config
from quart_openai_sse.errors import Draining, InvalidRequest
from quart_openai_sse.limits.memory import MemoryAccount
from quart_openai_sse.logs import Reader, StreamLog, Writer
from quart_openai_sse.logs.entries import About
from quart_openai_sse.observers import StreamRecord
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.protocol.member_rules import MemberRules
from quart_openai_sse.protocol.requests import body_size, check_idempotency_key, digest, validate
from quart_openai_sse.protocol.trace_context import current_trace_id
from quart_openai_sse.relay.admission import Admission, Place
from quart_openai_sse.relay.choice import choose_producer
from quart_openai_sse.relay.claims import Claims, Create
from quart_openai_sse.relay.current_upstream import CurrentUpstream
from quart_openai_sse.relay.drain import Drain
from quart_openai_sse.relay.hooks import HookCalls, Hooks
from quart_openai_sse.relay.opening import Opening
from quart_openai_sse.relay.reading import Reading
from quart_openai_sse.relay.running import RunningStream, StreamHandle, handle_of
from quart_openai_sse.relay.streams import SHUTTING_DOWN, Streams


class _Start(msgspec.Struct, kw_only=True):
    """A start that was admitted, with what it has made so far."""

    handle: StreamHandle
    principal: Principal
    body: dict[str, Any]
    """The request before `prepare`."""
    size: int
    record: StreamRecord
    place: Place
    create: Create
    writer: Writer | None
    reader: Reader | None = None
    retain: bool
    read: bool
    waits: bool
    allowed_models: Collection[str] | None


class Starts:
    """Starts the streams of one engine."""

    def __init__(
        self,
        config: Config,
        log: StreamLog,
        *,
        instance: str,
        hooks: Hooks,
        calls: HookCalls,
        memory: MemoryAccount,
        admission: Admission,
        streams: Streams,
        upstream: CurrentUpstream,
        opening: Opening,
        reading: Reading,
        drain: Drain,
    ) -> None:
        self._config = config
        self._log = log
        self._instance = instance
        self._hooks = hooks
        self._calls = calls
        self._memory = memory
        self._admission = admission
        self._streams = streams
        self._upstream = upstream
        self._opening = opening
        self._reading = reading
        self._drain = drain
        self._claims = Claims(log, streams)
        self._members = MemberRules(allowed=config.allowed_members, denied=config.denied_members)

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
        """See `Relay.start`."""
        if self._drain.refusing:
            raise Draining(SHUTTING_DOWN)
        body = validate(body, default_model=self._config.model)
        size = body_size(body) if size is None else size
        retain = retain or bool(idempotency_key)
        stream_id = _id_of_key(idempotency_key, principal) if idempotency_key else secrets.token_hex(16)
        handle = handle_of(stream_id, principal, instance=self._instance)
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
        create = partial(self._log.create, handle.key, about=about, digest=fingerprint, retain=retain)
        if not self._opening.is_open:
            await self._opening.open()
        reads = stream_id if read and retain else ""
        reserve = partial(self._admission.reserve, principal, body, size=size, reads=reads)
        writer: Writer | None = None
        if not idempotency_key:
            place = reserve()
            if place.share is not None:
                await place.confirm()
        elif (claimed := await self._claims.claim(handle, reserve, create)) is None:
            return structs.replace(handle, attached=True)
        else:
            place, writer = claimed
        start = _Start(
            handle=handle,
            principal=principal,
            body=body,
            size=size,
            record=record,
            place=place,
            create=create,
            writer=writer,
            retain=retain,
            read=read,
            waits=waits,
            allowed_models=allowed_models,
        )
        try:
            stream = await self._run(start)
        except BaseException as error:
            place.release()
            await self._streams.take_back(start.handle, start.writer, start.reader, error)
            raise
        return await self._streams.stored(stream) if retain and self._log.shared else stream.handle

    async def _run(self, start: _Start) -> RunningStream:
        """The stream of *start*, which runs."""
        record, place = start.record, start.place
        body = await self._prepare(start) if self._hooks.prepare else start.body
        record.model = body["model"]
        producer = choose_producer(
            body,
            start.principal,
            record,
            sent=start.body,
            hooks=self._hooks,
            upstream=self._upstream.get(),
            config=self._config,
            allowed=start.allowed_models,
            members=self._members,
            on_retry=partial(self._streams.observe, "retried", record),
            hold=place.hold,
            meter=place.spending,
            committed=time.monotonic() + self._config.commit_after if start.waits else None,
        )
        if start.writer is None:
            # `create` returns None only for a key in use, which a random key of 128 bits is not.
            start.writer = cast(Writer, await start.create())
        # Before the producer runs: a stream that does not linger must never be without its reader.
        if start.read or not start.retain:
            heartbeat = bool(body.get("stream"))
            start.reader = await self._reading.open(
                start.handle, heartbeat=heartbeat, counted=start.retain, share=place.share
            )
            start.handle = structs.replace(start.handle, reader=start.reader)
            record.readers = 1
        record.upstream = producer.upstream
        if self._drain.refusing:  # since the first check
            raise Draining(SHUTTING_DOWN)
        stream = RunningStream(
            handle=start.handle,
            principal=start.principal,
            body=body,
            record=record,
            place=place,
            writer=start.writer,
            producer=producer,
            intake=Intake(
                start.writer,
                record,
                assemble=self._config.max_bytes if self._hooks.on_end else 0,
                n=body.get("n") or 1,
                hold=place.hold,
                charge=None if place.spending is None else place.spending.charge,
            ),
        )
        shared = start.retain and self._log.shared
        self._streams.run(stream, linger=self._config.linger if start.retain else 0, shared=shared)
        return stream

    async def _prepare(self, start: _Start) -> Mapping[str, Any]:
        """The request as the hooks leave it, which the place is measured by from now on."""
        body = await self._hooks.run_prepare(start.body, start.principal, calls=self._calls)
        place = start.place
        place.hold(body_size(body) - start.size)
        self._memory.check()
        if place.share is not None:
            await place.share.grow(body)
        elif place.spending is not None:
            place.spending.estimate(body)
        return body


def _id_of_key(idempotency_key: str, principal: Principal) -> str:
    """The id of the stream that an `Idempotency-Key` names."""
    if principal.anonymous:
        raise InvalidRequest("Anonymous callers cannot use Idempotency-Key.", param="Idempotency-Key")
    return sha256(b"idempotency-key:" + check_idempotency_key(idempotency_key).encode()).hexdigest()[:32]
