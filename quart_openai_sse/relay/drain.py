"""A drain: an engine that shuts down refuses new streams, and waits for those that run."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from quart_openai_sse.producers import CLEAN_UP
from quart_openai_sse.relay.readers import Readers
from quart_openai_sse.relay.streams import Streams

logger = logging.getLogger("quart_openai_sse")


class Drain:
    """Whether an engine drains, and how far it has come."""

    def __init__(self, streams: Streams, readers: Readers) -> None:
        self.begun = False
        """Whether a drain has begun."""
        self.refusing = False
        """Whether new streams are refused: the grace of a drain is over."""
        self._grace_is_over = asyncio.Event()
        self._streams = streams
        self._readers = readers

    async def run(self, timeout: float, *, grace: float) -> None:
        """See `Relay.drain`."""
        until = time.monotonic() + timeout
        self.begun = True
        if grace > 0 and not self.refusing:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._grace_is_over.wait()
        self.refusing = True
        self._grace_is_over.set()
        await self._streams.drain(max(0.0, until - time.monotonic()))
        if not await self._readers.wait_for_none(CLEAN_UP):
            logger.warning("%d readers have not had their last event", len(self._readers))
