"""The time that one write of a streamed response may take."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import Any, cast

from quart_openai_sse.auth.in_process import CALLER
from quart_openai_sse.web.middleware import ASGIApp, Receive, Scope, Send

logger = logging.getLogger("quart_openai_sse")

_CHECKS = 4  # in one timeout
_MOMENT = 0.1  # seconds in which an app ends after its response was cut off


@dataclass(slots=True)
class _ServerCall:
    """A server's call of the app for one request, or that of `ai.transport()`."""

    task: asyncio.Task[Any]
    in_process: bool
    cut_off: bool = False


_server_call: ContextVar[_ServerCall | None] = ContextVar("quart_openai_sse_server_call", default=None)


class CutOff:
    """ASGI middleware: the app's call ends when a `WriteWatch` cuts its response off."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        call = _ServerCall(cast("asyncio.Task[Any]", asyncio.current_task()), in_process=CALLER in scope)
        _server_call.set(call)
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not call.cut_off:
                raise
            call.task.uncancel()


class WriteWatch:
    """Cuts off a response if its client does not accept a write within *timeout* seconds, or a quarter more.

    A server waits while a client does not read, and only a task can be stopped from outside: *task*, which writes the
    response. Quart 0.23 then waits for the client to disconnect, so the server's task is stopped as well.

    One timer looks at the number of writes from time to time, so that a write costs nothing. `stop` ends it, and so
    does the end of *task*. A request of code in this process has no timer: a model may do something else between two
    chunks, for as long as its own deadlines allow.
    """

    def __init__(self, task: asyncio.Task[Any], timeout: float) -> None:
        self.writes = 0
        """Increased by one before and after each write: it is odd while a write waits for the client."""
        self._task = task
        self._call = _server_call.get()
        self._interval = timeout / _CHECKS
        self._seen = 0
        self._in_a_row = 0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        if self._call is None or not self._call.in_process:
            self._timer = self._loop.call_later(self._interval, self._check, context=Context())

    def stop(self) -> None:
        """Stops the timer. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        waits = self.writes % 2 == 1 and self.writes == self._seen
        self._in_a_row = self._in_a_row + 1 if waits else 0
        self._seen = self.writes
        if self._task.done():  # the body never began
            return
        if self._in_a_row < _CHECKS:
            self._timer = self._loop.call_later(self._interval, self._check, context=Context())
        else:
            logger.warning("a client has not accepted a write in time, and its response is cut off")
            self._task.add_done_callback(self._end_app)
            self._task.cancel()

    def _end_app(self, _task: asyncio.Task[Any]) -> None:
        if (call := self._call) is not None:
            call.cut_off = True
            self._loop.call_later(_MOMENT, call.task.cancel, context=Context())  # which does nothing if it has ended
