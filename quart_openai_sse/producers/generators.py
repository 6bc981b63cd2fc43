"""The app's generators: how they are iterated over, and closed together with what they iterate over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from time import monotonic
from typing import Any, cast

logger = logging.getLogger("quart_openai_sse")

_MOST_ITEMS = 1000  # more chunks than the buffer of an HTTP library holds
_MOST_SECONDS = 0.25


class AppGenerator:
    """An async generator of the app, or any other async iterator. *convert* is called with each of its items."""

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

    async def aclose(self) -> None:
        """Closes the generator, and what it iterates over. Exceptions that it raises meanwhile are logged only.

        `aclose` of an async generator raises at its `yield`: an inner stream that it iterates over with a plain
        `async for` is only dropped, and most libraries close its connection when it is garbage collected. They all
        close it when their own wait is cancelled, so a generator at its `yield` first runs on to its next wait, and
        is cancelled there.
        """
        try:
            await self.items.aclose()
            if self.at_yield:
                await self._cancel_next_wait()
            if (close := getattr(self._iterator, "aclose", None)) is not None:
                await close()
        except Exception as error:
            logger.warning("%r raised while it was closed", self._iterator, exc_info=error)

    async def _items(self) -> AsyncGenerator[Any, None]:
        convert = self._convert
        async for item in self._iterator:
            self.at_yield = True
            yield convert(item)
            self.at_yield = False
            self.resumed = monotonic()
        self.exhausted = True

    async def _cancel_next_wait(self) -> None:
        """Runs the generator on until it waits, and cancels that. A generator that does not wait is left at a `yield`.

        Items are dropped meanwhile: those that a library has read already are yielded without any wait.
        """
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        before, cancelled = task.cancelling(), False

        def cancel() -> None:
            nonlocal cancelled
            cancelled = task.cancel()

        # The event loop runs it as soon as the generator waits.
        handle = asyncio.get_running_loop().call_soon(cancel)
        until = monotonic() + _MOST_SECONDS
        try:
            for _ in range(_MOST_ITEMS):
                await self._iterator.__anext__()
                if cancelled or monotonic() > until:  # it swallowed the cancellation; or it blocks the event loop
                    break
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError:
            if task.cancelling() > before + cancelled:  # somebody else cancels the task as well
                raise
        finally:
            handle.cancel()
            if cancelled:
                task.uncancel()
