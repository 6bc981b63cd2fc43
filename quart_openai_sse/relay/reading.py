"""Opening the readers of streams."""

from __future__ import annotations

from quart_openai_sse.config import Config
from quart_openai_sse.limits.sharing import Sharing
from quart_openai_sse.logs import Reader, StreamLog
from quart_openai_sse.relay.readers import Readers
from quart_openai_sse.relay.running import StreamHandle
from quart_openai_sse.relay.shares import Share


class Reading:
    """Opens readers of *log* within the limits of *readers*, which hold for all workers with *sharing*."""

    def __init__(self, config: Config, log: StreamLog, readers: Readers, sharing: Sharing | None) -> None:
        self._config = config
        self._log = log
        self._readers = readers
        self._sharing = sharing

    async def open(
        self,
        handle: StreamHandle,
        *,
        after: str = "",
        heartbeat: bool,
        counted: bool = True,
        share: Share | None = None,
    ) -> Reader:
        """A reader behind *after*, which `Readers.leave` must close.

        Raises what `StreamLog.read` raises, and `TooManyReaders` if it is *counted*. The *share* of a stream that
        starts may have counted it for the other workers.
        """
        if counted:  # before the log is asked: others may be asking at the same time
            self._readers.reserve(handle)
            if self._sharing is not None and (share is None or not share.pass_reader()):
                await self._readers.share(handle)
        try:
            seconds = self._config.keepalive or None if heartbeat else None
            reader = await self._log.read(handle.key, after=after, heartbeat=seconds)
        except BaseException:
            if counted:
                self._readers.give_back(handle)
            raise
        self._readers.add(reader, handle, counted=counted)
        return reader
