"""Starts with an `Idempotency-Key`: the first one of a key gets its stream, the others attach to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from quart_openai_sse.errors import MemoryFull, StreamExpired, StreamNotFound, TokensSpent, TooManyStreams
from quart_openai_sse.logs import StreamLog, Writer
from quart_openai_sse.relay.admission import Place
from quart_openai_sse.relay.running import StreamHandle
from quart_openai_sse.relay.streams import Streams

_MOMENT = 0.1  # seconds in which another worker creates a stream that it has a place for

Create = Callable[[], Awaitable[Writer | None]]
"""`StreamLog.create` for one stream. It compares the digests, and raises `KeyReused`."""


class Claims:
    """The keys of one engine that are being claimed."""

    def __init__(self, log: StreamLog, streams: Streams) -> None:
        self._log = log
        self._streams = streams
        self._claiming: dict[str, asyncio.Event] = {}
        """Each key for which the log is being asked, with an event that is set when it has answered."""

    async def claim(
        self, handle: StreamHandle, reserve: Callable[[], Place], create: Create
    ) -> tuple[Place, Writer] | None:
        """A place and a new stream for a key; `None` if it has a stream to attach to, which needs no place.

        Of the starts of one key that come at once only one takes a place: the others wait until its stream exists.
        """
        while (other := self._claiming.get(handle.key)) is not None:
            await other.wait()
        self._claiming[handle.key] = done = asyncio.Event()
        elsewhere = False
        try:
            try:
                place = reserve()
                if elsewhere := place.share is not None:
                    await place.confirm()
            except (TooManyStreams, TokensSpent, MemoryFull):
                if await self._exists(handle, create):
                    return None
                if elsewhere:  # another worker may have taken the last place for this key, and not its stream yet
                    await asyncio.sleep(_MOMENT)
                    if await self._exists(handle, create):
                        return None
                raise
            with ExitStack() as undo:
                undo.callback(place.release)
                if (writer := await create()) is None:
                    return None
                undo.pop_all()
            return place, writer
        finally:
            del self._claiming[handle.key]
            done.set()

    async def _exists(self, handle: StreamHandle, create: Create) -> bool:
        """Whether there is a stream to attach to."""
        try:
            await self._log.tail(handle.key)
        except StreamNotFound:
            return False
        except StreamExpired:
            pass
        writer = await create()
        if writer is not None:  # the stream failed before its first entry, and does not hold its key
            await self._streams.refuse(handle, writer)
        return writer is None
