"""Stops streams and waits for their ends, so that they can be erased."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from quart_openai_sse.errors import LogUnavailable, StreamExpired, StreamNotFound
from quart_openai_sse.logs import StreamLog

ERASED = "erased"
"""The reason with which a stream is stopped to be erased."""

_PATIENCE = 10.0  # seconds


async def wait_for_ends(log: StreamLog, keys: Sequence[str]) -> None:
    """Stops the streams with *keys* that run, and returns when all have ended.

    Raises `LogUnavailable` also if one of them does not end within some seconds.
    """
    try:
        async with asyncio.timeout(_PATIENCE):
            # At the same time: what runs clean-up code of its own may take seconds.
            await asyncio.gather(*(_wait_for_end(log, key) for key in keys))
    except TimeoutError:
        raise LogUnavailable("A stream that was stopped has not ended yet.") from None


async def _wait_for_end(log: StreamLog, key: str) -> None:
    with suppress(StreamNotFound, StreamExpired):
        await log.stop(key, ERASED)
        last, ended = await log.tail(key)
        if ended:
            return
        reader = await log.read(key, after=last)
        try:
            async for _ in reader:
                pass
        finally:
            await reader.aclose()
