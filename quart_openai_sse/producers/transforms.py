"""Transforms: the app's generators between what produces a stream and its log."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, cast

Transform = Callable[[AsyncIterator[Any], Any], AsyncIterator[Any]]
"""An async generator function `(items, chat)`: it is given chunks (mappings) and the app's `Event`s, and yields what
is to become of them. It may hold back, change, add and leave out.

To end the stream it yields a chunk with a `finish_reason` and returns, or raises `StreamStopped` with a reason.
"""


async def transformed(
    items: AsyncGenerator[Any, None], transforms: Sequence[Transform], chat: Any, *, normal: Callable[[Any], Any]
) -> AsyncGenerator[Any, None]:
    """*items* through all of *transforms*, one after the other. *normal* makes chunks of what they may yield besides.

    All are closed when this is.
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
