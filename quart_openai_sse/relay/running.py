"""A stream that is being produced: what belongs to it, and what its end is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from quart_openai_sse.errors import ModelFailed, OpenAISSEError, ServerShutdown, StreamStopped, StreamTooLong
from quart_openai_sse.logs import Reader, Writer
from quart_openai_sse.logs.entries import End, Outcome
from quart_openai_sse.observers import StreamRecord
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers import Producer
from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.protocol.trace_context import current_trace_id
from quart_openai_sse.relay.background import Background, run_abandonable
from quart_openai_sse.relay.hooks import StreamEnd

logger = logging.getLogger("quart_openai_sse")

Interruption = Literal["failed", "stopped"]

CLEAN_UP = 5.0
"""Seconds that whoever is stopped may take to clean up."""


@dataclass(frozen=True, slots=True)
class StreamHandle:
    """A stream that was started, or attached to. *reader* is already there if the stream is not retained."""

    id: str
    key: str
    attached: bool = False
    reader: Reader | None = None


class RunningStream:
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
        self._producing: asyncio.Task[None] | None = None
        self._interruption: tuple[Interruption, str, OpenAISSEError | None] | None = None

    async def produce(self, background: Background) -> End:
        """Runs the producer until it is over, or interrupted. It is the stream's task that does it."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        over, asked = False, False
        error: Exception | None = None
        self._producing = task
        try:
            if self._interruption is None:
                running = self.producer.run(self.intake)
                if not self.producer.cancels_at_once:
                    running = run_abandonable(running, patience=CLEAN_UP, background=background)
                await running
                over = True
        except asyncio.CancelledError:
            asked = task.cancelling() > 0
        except Exception as raised:
            error = raised
        self._producing = None
        self.intake.close()
        if self._interruption is not None:
            with suppress(asyncio.CancelledError):  # which may be still on its way
                await asyncio.sleep(0)
        while task.cancelling():  # what follows is not to be cancelled
            task.uncancel()
        # Whoever swallows an interruption has not completed anything by that.
        if over and (self._interruption is None or self.producer.completion.done):
            return self.end("completed")
        if self._interruption is not None:  # and whatever the producer has raised meanwhile is not how it ended
            return self.end(*self._interruption)
        if asked:  # by the event loop, which is being closed under us
            return self.failed(ServerShutdown("The server stopped."))
        return self._end_by(error or OpenAISSEError("The producer was cancelled."))

    def interrupt(self, outcome: Interruption, reason: str, error: OpenAISSEError | None = None) -> None:
        """Ends the stream so; the first interruption wins."""
        if self._interruption is None:
            self._interruption = (outcome, reason, error)
            self.intake.close()
            if self._producing is not None:
                self._producing.cancel()

    def expire(self) -> None:
        """Its time is over."""
        self.interrupt("failed", "stream_too_long", StreamTooLong("The stream ran for too long."))

    def end(self, outcome: Outcome, reason: str = "", error: OpenAISSEError | None = None) -> End:
        """An end, with what the completion knows by now."""
        completion = self.producer.completion
        return End(outcome, reason, error, dict(completion.finish_reasons), completion.usage)

    def failed(self, error: OpenAISSEError) -> End:
        """The end of a stream that failed with *error*."""
        return self.end("failed", error.code or "", error)

    def _end_by(self, error: Exception) -> End:
        """How a producer ended that raised."""
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
