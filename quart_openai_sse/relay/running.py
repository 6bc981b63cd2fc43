"""A stream that is being produced: its parts, and how its outcome is determined."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import msgspec

from quart_openai_sse.errors import (
    ErrorValue,
    ModelFailed,
    OpenAISSEError,
    ProducerLost,
    ServerShutdown,
    StreamStopped,
    StreamTooLong,
)
from quart_openai_sse.logs import Reader, Writer
from quart_openai_sse.logs.entries import End, Outcome
from quart_openai_sse.observers import StreamRecord
from quart_openai_sse.principal import Principal, owner_key, stream_key
from quart_openai_sse.producers import CLEAN_UP, Producer
from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.relay.admission import Place
from quart_openai_sse.relay.background import Background, run_abandonable
from quart_openai_sse.relay.hooks import StreamEnd, readable

logger = logging.getLogger("quart_openai_sse")

Interruption = Literal["failed", "stopped"]

LOST_TO_ANOTHER = "Another process has ended this stream."


class StreamHandle(msgspec.Struct, frozen=True):
    """A stream that was started, or attached to. *reader* is set if the stream is not retained."""

    id: str
    key: str
    owner: str = ""
    """The key of its principal in the log; "" for anonymous callers."""
    attached: bool = False
    reader: Reader | None = None


def handle_of(stream_id: str, principal: Principal, *, instance: str) -> StreamHandle:
    """The handle of a principal's stream, whether it exists or not: only the log knows that."""
    owner = owner_key(instance, principal)
    return StreamHandle(stream_id, stream_key(owner, stream_id), "" if principal.anonymous else owner)


@dataclass(eq=False, slots=True, kw_only=True)
class RunningStream:
    """A stream that is being produced. It is made when all of its parts are known."""

    handle: StreamHandle
    principal: Principal
    body: Mapping[str, Any]
    """The request, after `prepare`."""
    record: StreamRecord
    place: Place
    writer: Writer
    producer: Producer
    intake: Intake
    task: asyncio.Task[None] = field(init=False)
    lost: bool = False
    """Whether another process has ended it, because it took this one for dead."""
    _producing: asyncio.Task[None] | None = None
    _interruption: tuple[Interruption, str, OpenAISSEError | None] | None = None

    async def produce(self, background: Background) -> End:
        """Runs the producer until it is done or interrupted. To be called in the stream's own task."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        done, cancelled = False, False
        error: Exception | None = None
        self._producing = task
        try:
            if self._interruption is None:
                running = self.producer.run(self.intake)
                if not self.producer.cancels_at_once:
                    running = run_abandonable(running, patience=CLEAN_UP, background=background)
                await running
                done = True
        except asyncio.CancelledError:
            cancelled = task.cancelling() > 0
        except Exception as raised:
            error = raised
        self._producing = None
        self.intake.closed = True
        if self._interruption is not None:
            with suppress(asyncio.CancelledError):  # which may not have been delivered yet
                await asyncio.sleep(0)
        while task.cancelling():  # the rest of the stream's task must not be cancelled
            task.uncancel()
        # A producer that swallows its cancellation has not completed.
        if done and (self._interruption is None or self.producer.completion.done):
            return self.end("completed")
        if self._interruption is not None:  # an exception that the producer raised after it does not count
            return self.end(*self._interruption)
        if cancelled:  # the event loop is being closed
            return self.failed(ServerShutdown("The server stopped."))
        return self._end_by(error or OpenAISSEError("The producer was cancelled."))

    def interrupt(self, outcome: Interruption, reason: str, error: OpenAISSEError | None = None) -> None:
        """Ends the stream with this outcome; the first interruption wins."""
        if self._interruption is None:
            self._interruption = (outcome, reason, error)
            self.intake.closed = True
            if self._producing is not None:
                self._producing.cancel()

    def expire(self) -> None:
        """Ends the stream because it ran longer than `max_duration`."""
        self.interrupt("failed", "stream_too_long", StreamTooLong("The stream ran for too long."))

    def lose(self) -> None:
        """Ends the production of a stream that another process has ended."""
        self.lost = True
        self.interrupt("failed", "producer_lost", ProducerLost(LOST_TO_ANOTHER))

    def end(self, outcome: Outcome, reason: str = "", error: OpenAISSEError | None = None) -> End:
        """An end with the finish reasons and the usage that have arrived. It keeps nothing of *error* but its value."""
        completion = self.producer.completion
        value = None if error is None else ErrorValue.of(error)
        return End(outcome, reason, value, dict(completion.finish_reasons), completion.usage)

    def failed(self, error: OpenAISSEError) -> End:
        """The end of a stream that failed with *error*."""
        return self.end("failed", error.code or "", error)

    def complete_record(self, end: End) -> None:
        """Puts the end on the record, and settles the stream's tokens."""
        record = self.record
        record.outcome, record.reason = end.outcome, end.reason
        record.finish_reasons, record.usage = dict(end.finish_reasons), end.usage
        record.status = end.error.status if end.error is not None else 200
        record.duration = time.monotonic() - self.intake.began
        if (spending := self.place.spending) is not None:
            completed = end.outcome == "completed"
            record.tokens_charged = spending.settle(completed=completed, error=end.error, chunks=record.chunks)

    def stream_end(self, end: End) -> StreamEnd:
        """The argument of `on_end`."""
        return stream_end(end, principal=self.principal, body=self.body, intake=self.intake)

    def _end_by(self, error: Exception) -> End:
        """The end of a producer that raised."""
        if isinstance(error, StreamStopped):
            return self.end("stopped", error.message)
        if isinstance(error, ModelFailed) or not isinstance(error, OpenAISSEError):
            logger.error("stream %s failed", self.handle.id, exc_info=error)
        return self.failed(error if isinstance(error, OpenAISSEError) else OpenAISSEError("The stream failed."))


def stream_end(
    end: End, *, principal: Principal, body: Mapping[str, Any], intake: Intake, attempt: int = 1
) -> StreamEnd:
    """The argument of `on_end` for a stream whose entries *intake* has had."""
    assembled, record = intake.message, intake.record
    return StreamEnd(
        id=record.id,
        outcome=end.outcome,
        reason=end.reason,
        error=None if end.error is None else end.error.exception(),
        principal=principal,
        thread=record.thread,
        model=record.model,
        body=body,
        metadata=record.metadata,
        message=None if assembled is None else assembled.first_message(),
        reasoning="" if assembled is None else readable(assembled.reasoning),
        details={} if assembled is None else assembled.details,
        events=tuple(intake.events),
        finish_reasons=end.finish_reasons,
        usage=end.usage,
        record=replace(record),
        attempt=attempt,
    )
