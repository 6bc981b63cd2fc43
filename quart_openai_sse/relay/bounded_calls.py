"""Calls of the app's hooks: on the event loop or in threads, each with a time limit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import Any

from quart_openai_sse.errors import HookTimeout, OpenAISSEError
from quart_openai_sse.relay.background import Background
from quart_openai_sse.relay.threads import HookThreads, ThreadCall

logger = logging.getLogger("quart_openai_sse")

_QUIET = 10.0  # seconds between two warnings of the same kind
_MAX_LATE = 100  # calls of one kind that go on in the background after their time limit


class BoundedCalls:
    """The calls of one *kind* of hook: coroutine functions on the event loop, all others in at most *threads* threads.

    A call that exceeds *timeout* seconds is late: a warning names its hook, at most once in 10 seconds.
    """

    def __init__(self, kind: str, *, timeout: float, threads: int, background: Background) -> None:
        self.kind = kind
        self.timeout = timeout
        self.threads = HookThreads(threads, name=f"quart_openai_sse {kind} hook")
        self.background = background
        self.late = 0
        """Calls that have exceeded the time limit."""
        self.not_made = 0
        """Calls that have waited for a free thread until their time limit."""
        self._going_on: set[asyncio.Task[Any]] = set()
        self._warn_late = Sparingly()
        self._warn_not_made = Sparingly()

    @property
    def hanging(self) -> int:
        """Calls that are late and still run."""
        return len(self._going_on) + self.threads.abandoned

    def call(self, hook: Callable[..., Any], *args: Any, context: Context | None = None) -> HookCall:
        """Calls *hook*, in *context* or in a copy of the current one."""
        return HookCall(self.threads, hook, args, context)

    async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Returns or raises what *function* does in a thread, without a time limit."""
        return await self.threads.submit(function, *args).result()

    async def result(self, hook: Callable[..., Any], *args: Any) -> Any:
        """Returns or raises what *hook* does. Raises `HookTimeout` if it is late; then it is cancelled or abandoned."""
        call = self.call(hook, *args)
        try:
            await asyncio.wait({call.task}, timeout=self.timeout)
        except asyncio.CancelledError:
            call.task.cancel()
            self.background.hold(call.task)
            raise
        if not call.task.done():
            self.give_up(call)
            raise HookTimeout(f"A {self.kind} hook of the app took longer than {self.timeout:g} s.")
        if call.task.cancelled():
            raise OpenAISSEError(f"A {self.kind} hook of the app was cancelled.")
        return call.task.result()

    def give_up(self, call: HookCall) -> bool:
        """Ends a late call: on the event loop it is cancelled, in a thread it goes on by itself.

        Returns whether it had begun: it may have waited for a thread until now.
        """
        if self._was_waiting(call):
            return False
        call.task.cancel()
        self._keep(call)
        self.report_late(call.name)
        return True

    def let_go_on(self, call: HookCall) -> bool:
        """Like `give_up`, but the call goes on in the background, unless 100 late calls do."""
        if len(self._going_on) >= _MAX_LATE:
            return self.give_up(call)
        if self._was_waiting(call):
            return False
        self._keep(call)
        self.report_late(call.name)
        return True

    def report_late(self, name: str) -> None:
        """Counts a late call of the hook called *name*, and logs a warning."""
        self.late += 1
        self._warn_late.log(partial(self._log_late, name))

    def _was_waiting(self, call: HookCall) -> bool:
        if not call.withdraw():
            return False
        self.not_made += 1
        self._warn_not_made.log(partial(self._log_not_made, call.name))
        return True

    def _keep(self, call: HookCall) -> None:
        self._going_on.add(call.task)
        call.task.add_done_callback(self._going_on.discard)
        self.background.hold(call.task)

    def _log_late(self, name: str) -> None:
        logger.warning(
            "%s hook %r has been running for more than %g s; calls that hang: %d, that have been late so far: %d",
            self.kind,
            name,
            self.timeout,
            self.hanging,
            self.late,
            extra={"hook": name, "hanging": self.hanging, "late": self.late},
        )

    def _log_not_made(self, name: str) -> None:
        logger.error(
            "%s hook %r was not called: its %d threads are in use, by %d calls that hang; calls not made so far: %d",
            self.kind,
            name,
            self.threads.limit,
            self.hanging,
            self.not_made,
            extra={"hook": name, "hanging": self.hanging, "not_made": self.not_made},
        )


class HookCall:
    """One call of a hook, in a task of its own."""

    def __init__(
        self, threads: HookThreads, hook: Callable[..., Any], args: tuple[Any, ...], context: Context | None
    ) -> None:
        self.name = hook_name(hook)
        self._threads = threads
        self._in_thread: ThreadCall | None = None
        self.task = asyncio.get_running_loop().create_task(self._run(hook, args), context=context)

    async def _run(self, hook: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if runs_on_loop(hook):
            return await hook(*args)
        self._in_thread = self._threads.submit(hook, *args)
        result = await self._in_thread.result()
        return await result if isawaitable(result) else result

    def withdraw(self) -> bool:
        """Whether the call was still waiting for a thread. Then it is never made."""
        return self._in_thread is not None and self._in_thread.withdraw()


class Sparingly:
    """Logs a message at once, and then the last one that came, at most once in 10 seconds."""

    def __init__(self) -> None:
        self._last: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def log(self, message: Callable[[], None]) -> None:
        """Calls *message* now or later, or not at all if another one follows before."""
        self._last = message
        if self._timer is None:
            self._say()

    def _say(self) -> None:
        message, self._last, self._timer = self._last, None, None
        if message is not None:
            message()
            self._timer = asyncio.get_running_loop().call_later(_QUIET, self._say, context=Context())


def runs_on_loop(hook: Callable[..., Any]) -> bool:
    """Whether *hook* is a coroutine function, or an object that is called like one."""
    while isinstance(hook, partial):
        hook = hook.func
    return iscoroutinefunction(hook) or iscoroutinefunction(getattr(hook, "__call__", None))  # noqa: B004


def hook_name(hook: Any) -> str:
    """The name of *hook* in log lines and errors."""
    while isinstance(hook, partial):
        hook = hook.func
    name: str = getattr(hook, "__name__", None) or type(hook).__name__
    return name
