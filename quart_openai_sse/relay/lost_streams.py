"""The streams of workers that have died: `on_end` and the observers hear of them from a worker that lives."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.flow import MORE, Flow
from quart_openai_sse.limits.memory import MemoryAccount
from quart_openai_sse.logs import Entry, LostStream
from quart_openai_sse.logs.entries import End
from quart_openai_sse.observers import StreamRecord
from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.relay.hooks import HookCalls, Hooks
from quart_openai_sse.relay.running import stream_end
from quart_openai_sse.relay.stored_requests import StoredRequest, decode_request

logger = logging.getLogger("quart_openai_sse")


class LostStreams:
    """Ends the lost streams that this worker's log has claimed. *scope* is entered around `on_end`."""

    def __init__(
        self,
        config: Config,
        *,
        hooks: Hooks,
        calls: HookCalls,
        memory: MemoryAccount,
        scope: Callable[[], AbstractAsyncContextManager[Any]],
    ) -> None:
        self._config = config
        self._hooks = hooks
        self._calls = calls
        self._memory = memory
        self._scope = scope

    async def end(self, lost: LostStream) -> None:
        """Calls the hooks with what is stored of the stream, and reports its end. For `StreamLog.on_lost`.

        Returns after `on_end_timeout` seconds at the latest, and the time that its entries need to be read. Raises
        what reading them raises, and then has called nothing.
        """
        request = _request(lost)
        record = StreamRecord(id=lost.about.id, thread=lost.about.thread, model=lost.about.model)
        record = record if request is None else request.record
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            held += size
            self._memory.bodies += size

        try:
            intake = Intake(
                _Nowhere(),
                record,
                assemble=self._config.max_bytes if request is not None and self._hooks.on_end else 0,
                n=lost.about.n,
                hold=hold,
            )
            async for batch in lost.batches:
                for entry in batch.entries:  # one by one, as they came, for the times on the record
                    intake.append([entry])
            end = _known(lost.end, intake)
            _complete(record, end, began=lost.about.created)
            if request is not None and self._hooks.on_end:
                await self._call_hooks(request, end, intake, attempt=lost.attempt)
            self._hooks.observe("ended", record, calls=self._calls)
        finally:
            self._memory.bodies -= held

    async def _call_hooks(self, request: StoredRequest, end: End, intake: Intake, *, attempt: int) -> None:
        argument = stream_end(end, principal=request.principal, body=request.body, intake=intake, attempt=attempt)
        try:
            async with self._scope():
                await self._hooks.run_on_end(argument, calls=self._calls)
        except Exception:
            logger.exception("stream %s: the app context raised", argument.id)


def _request(lost: LostStream) -> StoredRequest | None:
    """The stored request, if there is one."""
    if not lost.request:
        return None
    try:
        return decode_request(lost.request, stream_id=lost.about.id)
    except ValueError:
        logger.exception("stream %s: its stored request could not be read, so on_end is not called", lost.about.id)
        return None


def _known(end: End, intake: Intake) -> End:
    """*end* with the finish reasons and the usage that have arrived; an end that was decided has them already."""
    if intake.message is None or end.finish_reasons or end.usage:
        return end
    return replace(end, finish_reasons=dict(intake.message.finish_reasons), usage=intake.message.usage)


def _complete(record: StreamRecord, end: End, *, began: float) -> None:
    record.outcome, record.reason = end.outcome, end.reason
    record.finish_reasons, record.usage = dict(end.finish_reasons), end.usage
    record.status = end.error.status if end.error is not None else 200
    record.duration = max(0.0, time.time() - began)  # by two clocks, if the worker was on another host


class _Nowhere:
    """A writer of entries that are in the log already."""

    def append(self, entries: Sequence[Entry]) -> Flow:
        return MORE

    async def room(self) -> None:
        """Returns at once."""
