"""The engines of one instance: one for each event loop, made when it is first needed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.upstreams import Upstream

logger = logging.getLogger("quart_openai_sse")


class Engines:
    """A `Relay` for each event loop: streams, locks and connections belong to one."""

    def __init__(self, create: Callable[[], Relay]) -> None:
        self._create = create
        self._relays: dict[asyncio.AbstractEventLoop, Relay] = {}
        self._override: Upstream | None = None

    def get(self) -> Relay:
        """The engine of the running event loop."""
        loop = asyncio.get_running_loop()
        if (relay := self._relays.get(loop)) is None:
            for other in [other for other in self._relays if other.is_closed()]:
                del self._relays[other]  # its own futures would keep it alive
            relay = self._relays[loop] = self._create()
            relay.use(self._override)
        return relay

    def current(self) -> Relay | None:
        """The engine of the running event loop, or `None` if none was needed yet."""
        return self._relays.get(asyncio.get_running_loop())

    async def open(self) -> None:
        """Opens the log of the running event loop's engine, so that the server starts with it.

        A log that is unavailable is opened when it is needed. Until then the app is not ready.
        """
        try:
            await self.get().open()
        except LogUnavailable as error:
            logger.warning("the stream log is unavailable: %s", error)

    async def aclose(self) -> None:
        """Ends the streams of the running event loop. Another use of the same loop gets a new engine."""
        if (relay := self.current()) is not None:
            await relay.aclose()  # which refuses new streams meanwhile
            del self._relays[asyncio.get_running_loop()]

    @property
    def overridden(self) -> bool:
        """Whether the engines ask another upstream than their own."""
        return self._override is not None

    @contextmanager
    def override(self, upstream: Upstream) -> Iterator[None]:
        """Within the block every engine asks *upstream*. An engine's own is created only when it is needed."""
        before = self._override
        self._use(upstream)
        try:
            yield
        finally:
            self._use(before)

    def _use(self, upstream: Upstream | None) -> None:
        self._override = upstream
        for relay in self._relays.values():
            relay.use(upstream)
