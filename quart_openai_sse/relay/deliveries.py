"""The delivery of events to the app's observers, off the path of the streams."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from functools import partial

from quart_openai_sse.functions import name_of
from quart_openai_sse.observers import Observer, StreamEvent
from quart_openai_sse.relay.bounded_calls import BoundedCalls, RateLimitedLog

logger = logging.getLogger("quart_openai_sse")

MAX_PENDING = 1000
"""Events of one observer that wait or are being delivered. Further events are dropped."""


class Deliveries:
    """The deliveries of one engine."""

    def __init__(self, calls: BoundedCalls) -> None:
        self.dropped = 0
        """Events that an observer was not called for: too many were pending, or no thread was free in time."""
        self._calls = calls
        self._observers: list[_Delivery] = []
        self._warn_dropped = RateLimitedLog()

    def add(self, event: StreamEvent, observers: Sequence[Observer]) -> None:
        """Calls each of *observers* soon. The list may have grown since the last call."""
        for observer in observers[len(self._observers) :]:
            self._observers.append(_Delivery(observer, self._calls, on_drop=partial(self._drop, name_of(observer))))
        for delivery in self._observers:
            delivery.add(event)

    def _drop(self, observer: str) -> None:
        self.dropped += 1
        self._warn_dropped.log(partial(self._log_dropped, observer))

    def _log_dropped(self, observer: str) -> None:
        logger.warning(
            "observer %r is too slow; events dropped so far: %d",
            observer,
            self.dropped,
            extra={"hook": observer, "dropped": self.dropped},
        )


class _Delivery:
    """The delivery to one observer: the events of a stream one after the other, those of several streams at once."""

    def __init__(self, observer: Observer, calls: BoundedCalls, *, on_drop: Callable[[], None]) -> None:
        self._observer = observer
        self._calls = calls
        self._on_drop = on_drop
        self._pending = 0
        self._streams: dict[str, deque[tuple[Context, StreamEvent]]] = {}
        """The waiting events of each stream that has a delivery, with the contexts in which they occurred."""

    def add(self, event: StreamEvent) -> None:
        """Calls the observer soon, or drops *event* if too many are pending."""
        if self._pending >= MAX_PENDING:
            self._on_drop()
            return
        self._pending += 1
        waiting = self._streams.get(event.record.id)
        if waiting is not None:
            waiting.append((copy_context(), event))
        else:
            self._streams[event.record.id] = waiting = deque([(copy_context(), event)])
            self._calls.background.hold(self._deliver(event.record.id, waiting))

    async def _deliver(self, stream_id: str, waiting: deque[tuple[Context, StreamEvent]]) -> None:
        try:
            while waiting:
                context, event = waiting.popleft()
                try:
                    await self._call(context, event)
                finally:
                    self._pending -= 1
        finally:
            del self._streams[stream_id]

    async def _call(self, context: Context, event: StreamEvent) -> None:
        call = self._calls.call(self._observer, event, context=context)
        await asyncio.wait({call.task}, timeout=self._calls.timeout)
        if not call.task.done():
            if not self._calls.give_up(call):
                self._on_drop()
        else:
            self._calls.log_failure(call, stream=event.record.id)
