"""Transforms: the app's generators between a producer and the log."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, cast

Transform = Callable[[AsyncIterator[Any], Any], AsyncIterator[Any]]
"""An async generator function `(items, chat)`. It iterates over chunks (mappings) and the app's `Event`s, and yields
the items of the stream: it may hold back, change, add and leave out.

To end the stream it yields a chunk with a `finish_reason` and returns, or raises `StreamStopped` with a reason.
"""


async def transformed(
    items: AsyncGenerator[Any, None], transforms: Sequence[Transform], chat: Any, *, normal: Callable[[Any], Any]
) -> AsyncGenerator[Any, None]:
    """*items* through all *transforms*, one after the other. *normal* converts each item to a chunk or an event.

    All generators are closed when this one is.
    """
    async with AsyncExitStack() as opened:

        async def stage(generator: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
            await opened.enter_async_context(aclosing(generator))
            async for item in generator:
                yield normal(item)

        passing = stage(items)
        for transform in transforms:
            passing = stage(cast(AsyncGenerator[Any, None], transform(passing, chat)))
        async with aclosing(passing):
            async for item in passing:
                yield item
