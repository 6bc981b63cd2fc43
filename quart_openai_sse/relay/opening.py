"""The stream log of an engine: opened when it is first needed, and closed with the engine."""

from __future__ import annotations

import asyncio
import logging

from quart_openai_sse.errors import ConfigurationError, LogUnavailable
from quart_openai_sse.limits.sharing import Sharing
from quart_openai_sse.logs import OnLost, StreamLog
from quart_openai_sse.producers import CLEAN_UP

logger = logging.getLogger("quart_openai_sse")


class Opening:
    """Opens and closes *log*, and *sharing* with it. *on_lost* is called for the streams of other processes."""

    def __init__(self, log: StreamLog, sharing: Sharing | None, on_lost: OnLost) -> None:
        self.is_open = False
        self._log = log
        self._sharing = sharing
        self._on_lost = on_lost

    async def open(self) -> None:
        """Opens the log, unless that is done. Raises `LogUnavailable`."""
        if not self.is_open:
            self._log.on_lost(self._on_lost)
            await self._log.open()
            self.is_open = True
            if self._sharing is not None:
                self._sharing.open()

    async def ready(self) -> bool:
        """Whether the log can be reached."""
        try:
            await self.open()
            return await self._log.ready()
        except LogUnavailable:
            return False
        except ConfigurationError:  # which has not shown before: the server started while the log was unavailable
            logger.exception("the stream log cannot be used")
            return False

    async def aclose(self) -> None:
        """Closes the log, if that is done within some seconds."""
        self.is_open = False
        try:
            async with asyncio.timeout(CLEAN_UP):
                await self._log.aclose()
        except TimeoutError:
            logger.warning("the stream log could not be closed in time")
