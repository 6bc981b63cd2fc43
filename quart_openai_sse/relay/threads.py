"""The threads in which the `def` hooks of an app run."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from inspect import iscoroutine
from typing import Any

from quart_openai_sse.relay.contexts import adopt

_IDLE = 10.0  # seconds after which a thread without a call ends


class HookThreads:
    """At most *limit* threads for the calls of one event loop. More calls wait until one of the threads is free.

    The threads belong to nothing else. `asyncio.to_thread` would share its threads with the lookup of host names, and
    hooks that hang would block new connections. They are daemon threads: the process can exit while a hook hangs.
    anyio's threads are not, and its limiter does not count the calls that were abandoned (4.16.0 on asyncio).
    """

    def __init__(self, limit: int, *, name: str) -> None:
        self.limit = limit
        self.abandoned = 0
        """Calls that still run although nothing waits for their result any more. Each occupies a thread."""
        self._name = name
        self._changed = threading.Condition()
        """Guards what follows, and wakes a thread for a new call."""
        self._waiting: deque[ThreadCall] = deque()
        self._threads = 0
        self._idle = 0
        self._running = 0

    @property
    def exhausted(self) -> bool:
        """Whether a call runs in each of the threads. A thread that has just been started runs none yet."""
        return self._running >= self.limit

    def submit(self, function: Callable[..., Any], *args: Any) -> ThreadCall:
        """Calls `function(*args)` in a thread, in a copy of the current context, as `asyncio.to_thread` does."""
        call = ThreadCall(self, partial(function, *args))
        with self._changed:
            self._waiting.append(call)
            if self._idle >= len(self._waiting):
                self._changed.notify()
            elif self._threads < self.limit:
                self._start_thread(call)
        return call

    def _start_thread(self, call: ThreadCall) -> None:
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:  # the system has no more threads
            if not self._threads:
                self._waiting.remove(call)
                raise
        else:
            self._threads += 1

    def withdraw(self, call: ThreadCall) -> bool:
        """Whether *call* was still waiting for a thread. Then it is never made."""
        with self._changed:
            if call not in self._waiting:
                return False
            self._waiting.remove(call)
            return True

    def _work(self) -> None:
        """What each thread does."""
        while (call := self._next()) is not None:
            call.make()
            del call  # its arguments are not kept until the next call
            with self._changed:
                self._running -= 1

    def _next(self) -> ThreadCall | None:
        with self._changed:
            while not self._waiting:
                self._idle += 1
                woken = self._changed.wait(_IDLE)
                self._idle -= 1
                if not woken and not self._waiting:
                    self._threads -= 1
                    return None
            self._running += 1
            return self._waiting.popleft()


class ThreadCall:
    """A function that runs in a thread, or waits for one. Only `make` is called in the thread."""

    def __init__(self, threads: HookThreads, function: Callable[[], Any]) -> None:
        self._threads = threads
        self._function = function
        self._context = copy_context()
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Any] = self._loop.create_future()
        self._left = self._finished = False

    async def result(self) -> Any:
        """Returns or raises what the function does. The context variables that it has set are set here then."""
        try:
            return await self._future
        except asyncio.CancelledError:
            self.leave()
            raise
        finally:
            if not self._future.cancelled():
                adopt(self._context)

    def withdraw(self) -> bool:
        """Whether the call was still waiting for a thread. Then it is never made, and `result` is cancelled."""
        if not self._threads.withdraw(self):
            return False
        self._finished = True
        self._future.cancel()
        return True

    def leave(self) -> None:
        """The result is not wanted any more. A call that has begun goes on, since a thread can't be cancelled."""
        if not self._left and not self._finished and not self.withdraw():
            self._left = True
            self._threads.abandoned += 1

    def make(self) -> None:
        """Calls the function and passes its result to the event loop."""
        result, error = None, None
        try:
            result = self._context.run(self._function)
        except Exception as raised:
            error = raised
            if isinstance(raised, StopIteration):  # which a future does not accept
                error = RuntimeError("A hook raised StopIteration.")
                error.__cause__ = raised
        except BaseException as raised:  # SystemExit: it would end the event loop
            error = RuntimeError(f"A hook raised {type(raised).__name__}.")
            error.__cause__ = raised
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._finish, result, error)

    def _finish(self, result: Any, error: Exception | None) -> None:
        self._finished = True
        if self._left:
            self._threads.abandoned -= 1
            if iscoroutine(result):
                result.close()  # it is never awaited
        elif not self._future.done():
            if error is not None:
                self._future.set_exception(error)
            else:
                self._future.set_result(result)
