"""The app's generators: how they are iterated over, and closed together with what they iterate over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, cast

logger = logging.getLogger("quart_openai_sse")

_MOST_ITEMS = 1000  # more chunks than the buffer of an HTTP library holds
_MOST_SECONDS = 0.25


ENDING = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
"""Exceptions that end a task or the event loop. Any other one is a failure of the code that raises it."""


class AppGenerator:
    """An async generator of the app, or any other async iterator.

    *convert* is called with each of its items. An item for which it returns `None` is left out.
    """

    def __init__(self, iterable: AsyncIterable[Any], convert: Callable[[Any], Any]) -> None:
        self.items = self._items()
        """What *convert* returns for each item. Nothing else iterates over the generator."""
        self.at_yield = False
        """Whether the generator has yielded an item, and does not run on yet."""
        self.resumed = 0.0
        """When it ran on after its last item, by `time.monotonic`."""
        self.exhausted = False
        """Whether it has ended by itself."""
        self._iterator = aiter(iterable)
        self._convert = convert
        self._task: asyncio.Task[Any] | None = None
        """The task that has had its last item."""
        self._waiting: asyncio.Task[Any] | None = None
        """The task that waits for its next item."""
        self._thrown: tuple[asyncio.CancelledError, int] | None = None

    async def aclose(self) -> None:
        """Closes the generator, and what it iterates over. Exceptions that it raises meanwhile are logged only.

        `aclose` of an async generator raises at its `yield`: an inner stream that it iterates over with a plain
        `async for` is only dropped, and most libraries close its connection when it is garbage collected. They all
        close it when their own wait is cancelled, so a generator at its `yield` first runs on to its next wait, and
        is cancelled there.
        """
        try:
            if (waiting := self._waiting) is not None and waiting is not asyncio.current_task():
                # A transform reads ahead in a task of its own. A generator that runs there cannot be closed from here.
                waiting.cancel()
                await asyncio.wait([waiting])
            await self.items.aclose()
            if self.at_yield:
                await self._cancel_next_wait()
            if (close := getattr(self._iterator, "aclose", None)) is not None:
                await close()
        except ENDING:
            raise
        except BaseException as error:
            logger.warning("%r raised while it was closed", self._iterator, exc_info=error)

    async def _items(self) -> AsyncGenerator[Any, None]:
        while True:
            self._task = self._waiting = asyncio.current_task()
            try:
                item = await self._next()
            except StopAsyncIteration:
                break
            finally:
                self._waiting = None
            self.at_yield = True
            if (converted := self._converted(item)) is not None:
                yield converted
            else:
                await asyncio.sleep(0)  # a generator that never waits must not starve the loop
            self.at_yield = False
            self.resumed = monotonic()
        self.exhausted = True

    def _converted(self, item: Any) -> Any:
        try:
            return self._convert(item)
        except Exception as error:
            error.add_note(self.place)
            raise

    @property
    def place(self) -> str:
        """The line of its last `yield`, for the log."""
        frame = getattr(self._iterator, "ag_frame", None)
        if frame is None:
            return f"Yielded by {type(self._iterator).__qualname__}."
        return f"Yielded in {frame.f_code.co_filename}, line {frame.f_lineno}, in {frame.f_code.co_name}."

    def _next(self) -> Awaitable[Any]:
        thrown, self._thrown = self._thrown, None
        if thrown is not None and _is_due(thrown, asyncio.current_task()):
            error, _ = thrown
            if (athrow := getattr(self._iterator, "athrow", None)) is None:
                raise error
            return cast("Awaitable[Any]", athrow(error))
        return anext(self._iterator)

    def stands_in(self, task: asyncio.Task[Any]) -> bool:
        """Whether the generator is at a `yield`, and runs in *task*."""
        return self.at_yield and self._task is task

    def throw(self, error: asyncio.CancelledError, task: asyncio.Task[Any]) -> None:
        """Raises *error* at the generator's `yield` when it runs on, or in the first wait of *task* before that."""
        self._thrown = thrown = error, task.cancelling()

        def cancel() -> None:
            if self._thrown is thrown:
                self._thrown = None
                if _is_due(thrown, task):
                    task.cancel(*error.args)
                    task.uncancel()  # this one: the code that made the first cancellation takes that back

        asyncio.get_running_loop().call_soon(cancel)

    async def _cancel_next_wait(self) -> None:
        """Runs the generator on until it waits, and cancels that. A generator that does not wait is left at a `yield`.

        Items are dropped meanwhile: those that a library has read already are yielded without any wait.
        """
        task, loop = cast("asyncio.Task[Any]", asyncio.current_task()), asyncio.get_running_loop()
        before, cancelled = task.cancelling(), False
        handle: asyncio.Handle

        def cancel_when_begun() -> None:
            # A library may wait in a task of its own, and nothing is closed by cancelling one that has not begun.
            nonlocal handle
            if isinstance(getattr(task, "_fut_waiter", None), asyncio.Task):
                handle = loop.call_soon(cancel)
            else:
                cancel()

        def cancel() -> None:
            nonlocal cancelled
            cancelled = task.cancel()

        # The event loop runs it as soon as the generator waits.
        handle = loop.call_soon(cancel_when_begun)
        until = monotonic() + _MOST_SECONDS
        try:
            for _ in range(_MOST_ITEMS):
                await self._iterator.__anext__()
                if cancelled or monotonic() > until:  # it swallowed the cancellation; or it blocks the event loop
                    break
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError:
            if task.cancelling() > before + cancelled:  # the task was cancelled from outside as well
                raise
        finally:
            handle.cancel()
            if cancelled:
                task.uncancel()


def throw(error: asyncio.CancelledError, generators: Sequence[AppGenerator]) -> None:
    """Lets one of *generators* handle *error*, with which the current task was cancelled between two items.

    Timeouts, task groups and cancel scopes that are open across a `yield` cancel the task, and it is not known in which
    generator they are. Each generator iterates over the one before it. The first of them that runs on raises the
    exception at its `yield`, and it passes through those behind it until one handles it, as any other cancellation.
    """
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    next(each for each in generators if each.stands_in(task)).throw(error, task)


def _is_due(thrown: tuple[asyncio.CancelledError, int], task: asyncio.Task[Any] | None) -> bool:
    """Whether the timeout or task group that cancelled *task* is still open: when it is left, it takes that back."""
    _, cancellations = thrown
    return task is not None and task.cancelling() >= cancellations
