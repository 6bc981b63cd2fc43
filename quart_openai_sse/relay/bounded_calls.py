"""Calls of the app's hooks: on the event loop or in threads, each with a time limit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from inspect import isawaitable
from typing import Any

from quart_openai_sse.errors import HookTimeout, OpenAISSEError
from quart_openai_sse.functions import name_of, runs_on_loop
from quart_openai_sse.relay.background import Background
from quart_openai_sse.relay.contexts import adopt
from quart_openai_sse.relay.threads import HookThreads, ThreadCall

logger = logging.getLogger("quart_openai_sse")

_QUIET = 10.0  # seconds between two warnings of the same kind
_MAX_LATE = 100  # calls of one kind that go on in the background after their time limit


class BoundedCalls:
    """The calls of one *kind* of hook: coroutine functions on the event loop, all others in at most *threads* threads.

    A call that exceeds *timeout* seconds is late: a warning names its hook, at most once in 10 seconds.
    """

    def __init__(
        self,
        kind: str,
        *,
        timeout: float,
        threads: int,
        background: Background,
        late_error: type[OpenAISSEError] = HookTimeout,
    ) -> None:
        self.kind = kind
        self.timeout = timeout
        self.threads = HookThreads(threads, name=f"quart_openai_sse {kind} hook")
        self.background = background
        self.late = 0
        """Calls that have exceeded the time limit."""
        self.skipped = 0
        """Calls that were never made: no thread was free until their time limit."""
        self._late_error = late_error
        self._going_on: set[asyncio.Task[Any]] = set()
        self._late_log = RateLimitedLog()
        self._skipped_log = RateLimitedLog()

    @property
    def hanging(self) -> int:
        """Calls that are late and still run."""
        return len(self._going_on) + self.threads.abandoned

    def call(self, hook: Callable[..., Any], *args: Any, context: Context | None = None) -> HookCall:
        """Calls *hook*, in *context* or in a copy of the current one."""
        return HookCall(self.threads, hook, args, copy_context() if context is None else context)

    async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Returns or raises what *function* does in a thread, without a time limit."""
        return await self.threads.submit(function, *args).result()

    async def result(self, hook: Callable[..., Any], *args: Any) -> Any:
        """Returns or raises what *hook* does. The context variables that it has set are set here then.

        Raises *late_error* (`HookTimeout`) if it is late; then it is cancelled or abandoned.
        """
        call = self.call(hook, *args)
        try:
            await asyncio.wait({call.task}, timeout=self.timeout)
        except asyncio.CancelledError:
            call.task.cancel()
            self.background.hold(call.task)
            raise
        if not call.task.done():
            self.give_up(call)
            raise self._late_error(f"The app's {self.kind} hook took longer than {self.timeout:g} s.")
        adopt(call.context)
        if call.task.cancelled():
            self.log_failure(call)
            raise OpenAISSEError(f"The app's {self.kind} hook was cancelled.")
        return call.task.result()

    def give_up(self, call: HookCall) -> bool:
        """Ends a late call: on the event loop it is cancelled, in a thread it goes on by itself.

        Returns whether it had begun: it may have waited for a thread until now.
        """
        if self._was_waiting(call):
            return False
        self._keep(call)
        call.task.cancel()
        return True

    def let_go_on(self, call: HookCall, *, stream: str) -> bool:
        """Like `give_up`, but the call goes on in the background, unless 100 late calls do."""
        if len(self._going_on) >= _MAX_LATE:
            return self.give_up(call)
        if self._was_waiting(call):
            return False
        self._keep(call)
        call.task.add_done_callback(partial(self._went_on, call, stream))
        return True

    def log_failure(self, call: HookCall, *, stream: str = "") -> None:
        """Logs the exception with which a call has ended, if there is one.

        A cancellation is one too: it came from code of the app, and the hook has not done its work.
        """
        try:
            error, failure = call.task.exception(), "raised"
        except asyncio.CancelledError as cancelled:
            error, failure = cancelled, "was cancelled"
        if error is not None:
            place = f"stream {stream}: " if stream else ""
            logger.error("%s%s hook %r %s", place, self.kind, call.name, failure, exc_info=error)

    def _went_on(self, call: HookCall, stream: str, task: asyncio.Task[Any]) -> None:
        if task.cancelled():  # `Background` logs exceptions
            self.log_failure(call, stream=stream)

    def _was_waiting(self, call: HookCall) -> bool:
        exhausted = self.threads.exhausted
        if not call.withdraw():
            return False
        self.skipped += 1
        self._skipped_log.log(partial(self._log_skipped, call.name, exhausted))
        return True

    def _keep(self, call: HookCall) -> None:
        """Counts a late call as such, until it ends, and logs a warning."""
        self._going_on.add(call.task)
        call.task.add_done_callback(self._going_on.discard)
        self.background.hold(call.task)
        self.late += 1
        self._late_log.log(partial(self._log_late, call.name))

    def _log_late(self, name: str) -> None:
        logger.warning(
            "%s hook %r has been running for more than %g s; still running: %d; late in total: %d",
            self.kind,
            name,
            self.timeout,
            self.hanging,
            self.late,
            extra={"hook": name, "hanging": self.hanging, "late": self.late},
        )

    def _log_skipped(self, name: str, exhausted: bool) -> None:
        reason = "all threads (%d) are in use" if exhausted else "none of at most %d threads has begun the call in time"
        logger.error(
            f"%s hook %r was not called: {reason}; late calls still running: %d; calls skipped in total: %d",
            self.kind,
            name,
            self.threads.limit,
            self.hanging,
            self.skipped,
            extra={"hook": name, "hanging": self.hanging, "skipped": self.skipped},
        )


class HookCall:
    """One call of a hook, in a task of its own."""

    def __init__(self, threads: HookThreads, hook: Callable[..., Any], args: tuple[Any, ...], context: Context) -> None:
        self.context = context
        self._threads = threads
        self._hook = hook
        self._in_thread: ThreadCall | None = None
        self.task = asyncio.get_running_loop().create_task(self._run(args), context=context)

    @property
    def name(self) -> str:
        """The hook's name. It may change while the hook runs."""
        return name_of(self._hook)

    async def _run(self, args: tuple[Any, ...]) -> Any:
        if runs_on_loop(self._hook):
            return await self._hook(*args)
        self._in_thread = self._threads.submit(self._hook, *args)
        result = await self._in_thread.result()
        return await result if isawaitable(result) else result

    def withdraw(self) -> bool:
        """Whether the call was still waiting for a thread. Then it is never made."""
        return self._in_thread is not None and self._in_thread.withdraw()


class RateLimitedLog:
    """Logs a message at once, and then the last one that came, at most once in 10 seconds."""

    def __init__(self) -> None:
        self._last: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def log(self, message: Callable[[], None]) -> None:
        """Calls *message* now or later, or not at all if another one follows before."""
        self._last = message
        if self._timer is None:
            self._log()

    def _log(self) -> None:
        message, self._last, self._timer = self._last, None, None
        if message is not None:
            message()
            self._timer = asyncio.get_running_loop().call_later(_QUIET, self._log, context=Context())
