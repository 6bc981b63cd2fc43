"""A stream that is being produced: what belongs to it, and what its end is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any, Literal

from quart_openai_sse.entries import End, Outcome
from quart_openai_sse.errors import ModelFailed, OpenAISSEError, StreamStopped
from quart_openai_sse.logs import Reader, Writer
from quart_openai_sse.observers import StreamEnd, StreamRecord
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers import Intake, Producer
from quart_openai_sse.trace import current_trace_id

logger = logging.getLogger("quart_openai_sse")

Interruption = Literal["failed", "stopped"]


@dataclass(frozen=True, slots=True)
class StreamHandle:
    """A stream that was started, or attached to. *reader* is already there if the stream is not retained."""

    id: str
    key: str
    attached: bool = False
    reader: Reader | None = None


class Live:
    """A stream that is being produced."""

    def __init__(self, handle: StreamHandle, principal: Principal, *, retain: bool) -> None:
        self.handle = handle
        self.principal = principal
        self.retain = retain
        self.created = int(time.time())
        self.record = StreamRecord(id=handle.id, principal=str(principal), trace_id=current_trace_id())
        self.body: Mapping[str, Any] = {}
        self.writer: Writer
        self.producer: Producer
        self.intake: Intake
        self.task: asyncio.Task[None]
        self.context: Context
        """That of its task: what arrives from the upstream is read in another's."""
        self.interrupted: asyncio.Future[tuple[Interruption, str, OpenAISSEError | None]]
        self.interrupted = asyncio.get_running_loop().create_future()

    def interrupt(self, outcome: Interruption, reason: str, error: OpenAISSEError | None = None) -> None:
        """Ends the stream so; the first interruption wins."""
        if not self.interrupted.done():
            self.interrupted.set_result((outcome, reason, error))

    def end(self, outcome: Outcome, reason: str = "", error: OpenAISSEError | None = None) -> End:
        """An end, with what the completion knows by now."""
        completion = self.producer.completion
        return End(outcome, reason, error, dict(completion.finish_reasons), completion.usage)

    def failed(self, error: OpenAISSEError) -> End:
        """The end of a stream that failed with *error*."""
        return self.end("failed", error.code or "", error)

    def end_of(self, producing: asyncio.Future[None]) -> End:
        """How a producer ended by itself."""
        if producing.cancelled():
            return self.failed(OpenAISSEError("The producer was cancelled."))
        error = producing.exception()
        if error is None:
            return self.end("completed")
        if isinstance(error, StreamStopped):
            return self.end("stopped", error.message)
        if isinstance(error, ModelFailed) or not isinstance(error, OpenAISSEError):
            logger.error("stream %s failed", self.handle.id, exc_info=error)
        return self.failed(error if isinstance(error, OpenAISSEError) else OpenAISSEError("The stream failed."))

    def complete_record(self, end: End) -> None:
        """Puts the end on the record."""
        record = self.record
        record.outcome, record.reason = end.outcome, end.reason
        record.finish_reasons, record.usage = dict(end.finish_reasons), end.usage
        record.status = end.error.status if end.error is not None else 200
        record.duration = self.intake.elapsed()

    def stream_end(self, end: End) -> StreamEnd:
        """What `on_end` gets."""
        assembled = self.intake.message
        completion = None if assembled is None else assembled.message()
        choices = (completion or {}).get("choices") or [{}]
        return StreamEnd(
            id=self.handle.id,
            outcome=end.outcome,
            reason=end.reason,
            error=end.error,
            principal=self.principal,
            thread=self.record.thread,
            model=self.record.model,
            body=self.body,
            metadata=self.record.metadata,
            message=None if completion is None else choices[0].get("message"),
            events=tuple(self.intake.events),
            finish_reasons=end.finish_reasons,
            usage=end.usage,
            record=replace(self.record),
        )
