"""A stream log in the memory of one process and one event loop."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context

from quart_openai_sse.config import Config
from quart_openai_sse.errors import KeyReused, MemoryFull, OpenAISSEError, StreamExpired, StreamNotFound, StreamTooLong
from quart_openai_sse.logs import OnLost
from quart_openai_sse.logs.endings import ERASED, wait_for_ends
from quart_openai_sse.logs.entries import END_ID, About
from quart_openai_sse.logs.kept import KeptStream
from quart_openai_sse.logs.memory_stream import STREAM_OVERHEAD, MemoryReader, MemoryStream, OwningLog
from quart_openai_sse.logs.passing import PassingStream

CreateKept = Callable[[OwningLog, str, About, str], MemoryStream]
"""Makes a kept stream in a log, with its key and its digest."""

_MAX_TOMBSTONES = 100_000


class MemoryLog:
    """Keeps streams in the memory of one worker. *clock* returns seconds, and *kept* makes its kept streams."""

    shared = False

    def __init__(
        self,
        *,
        retention: float = 300,
        tombstone: float = 3600,
        max_entries: int = 200_000,
        max_bytes: int = 64 << 20,
        max_log_bytes: int = 512 << 20,
        high_water: int = 256 << 10,
        clock: Callable[[], float] = time.monotonic,
        kept: CreateKept = KeptStream,
    ) -> None:
        self.retention = retention
        self.tombstone = tombstone
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.max_log_bytes = max_log_bytes
        self.high_water = high_water
        self.clock = clock
        self._kept = kept
        self.size = 0
        """The bytes that all streams take."""
        self._streams: dict[str, MemoryStream] = {}
        self._owners: dict[str, dict[str, MemoryStream]] = {}
        """The kept streams by owner and key, oldest first."""
        self._ended: OrderedDict[str, float] = OrderedDict()  # when each retained stream ended, oldest first
        self._tombstones: OrderedDict[str, tuple[float, str]] = OrderedDict()  # when it expired, and its digest
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def from_config(cls, config: Config, *, tombstone: float | None = None, kept: CreateKept = KeptStream) -> MemoryLog:
        """The log that *config* describes, with another *tombstone* if it is given."""
        return cls(
            retention=config.retention,
            tombstone=config.tombstone if tombstone is None else tombstone,
            kept=kept,
            max_entries=config.max_entries,
            max_bytes=config.max_bytes,
            max_log_bytes=config.max_log_bytes,
            high_water=config.high_water,
        )

    async def open(self) -> None:
        """See `StreamLog.open`."""

    async def ready(self) -> bool:
        """See `StreamLog.ready`."""
        return True

    async def aclose(self) -> None:
        """See `StreamLog.aclose`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def create(self, key: str, *, about: About, digest: str, retain: bool) -> MemoryStream | None:
        """See `StreamLog.create`. Raises `MemoryFull` for a kept stream if running streams take up the whole log."""
        self._sweep()
        known = self._digest(key)
        if known is not None:
            if known != digest:
                raise KeyReused("This Idempotency-Key was used before with another body.")
            return None
        if (failed := self._streams.get(key)) is not None:
            self._forget(failed)
        if retain:
            self._reserve(STREAM_OVERHEAD, MemoryFull)
        else:  # which needs no room: its reader takes its entries
            self.size += STREAM_OVERHEAD
        self._streams[key] = stream = (self._kept if retain else PassingStream)(self, key, about, digest)
        if retain and about.owner:
            self._owners.setdefault(about.owner, {})[key] = stream
        return stream

    async def read(self, key: str, *, after: str = "", heartbeat: float | None = None) -> MemoryReader:
        """See `StreamLog.read`."""
        self._sweep()
        stream = self._find(key)
        return MemoryReader(stream, stream.place(after), at_end=after == END_ID, heartbeat=heartbeat)

    async def stop(self, key: str, reason: str) -> None:
        """See `StreamLog.stop`."""
        if key not in self._tombstones:
            self._find(key).stop(reason)

    async def tail(self, key: str) -> tuple[str, bool]:
        """See `StreamLog.tail`."""
        stream = self._find(key)
        return str(stream.last or ""), stream.end is not None

    async def find(self, owner: str, *, thread: str | None = None, ended_within: float = 0.0) -> list[About]:
        """See `StreamLog.find`."""
        self._sweep()
        oldest = self.clock() - ended_within
        return [
            stream.about
            for key, stream in reversed(self._owners.get(owner, {}).items())
            if (thread is None or stream.about.thread == thread) and (stream.end is None or self._ended[key] > oldest)
        ]

    async def erase(self, key: str) -> None:
        """See `StreamLog.erase`."""
        if key in self._tombstones:
            return
        stream = self._find(key)
        if stream.end is None:
            return
        if stream.retain and not stream.failed_empty:
            self._tombstones[key] = (self.clock(), stream.digest)
        await self.drop(stream)

    async def forget(self, owner: str) -> None:
        """See `StreamLog.forget`."""
        keys = self.keys_of(owner)
        self.stop_passing(owner, ERASED)
        try:
            await wait_for_ends(self, keys)
        finally:
            for key in keys:
                if key in self._streams:
                    await self.erase(key)

    def on_lost(self, call: OnLost) -> None:
        """See `StreamLog.on_lost`. There is no other process."""

    def get(self, key: str) -> MemoryStream | None:
        """The stream with this key that the log holds, unless its time is over."""
        self._sweep()
        return self._streams.get(key)

    def streams(self) -> list[MemoryStream]:
        """All streams that the log holds."""
        return list(self._streams.values())

    def keys_of(self, owner: str) -> list[str]:
        """The keys of the kept streams of *owner*, oldest first."""
        return list(self._owners.get(owner, ()))

    def stop_passing(self, owner: str, reason: str) -> None:
        """Stops the passing streams of *owner*, if it is not ""."""
        for stream in self.streams() if owner else ():
            if not stream.retain and stream.about.owner == owner:
                stream.stop(reason)

    def let_go(self, stream: MemoryStream) -> None:
        """Removes a stream without a trace. Its readers go on."""
        self._forget(stream)

    async def drop(self, stream: MemoryStream) -> None:
        """Removes a stream without a trace, and closes its readers."""
        self._forget(stream)
        for reader in list(stream.readers):
            await reader.aclose()

    def _find(self, key: str) -> MemoryStream:
        if key in self._tombstones:
            raise StreamExpired("This stream has ended and is no longer kept.")
        if key not in self._streams:
            raise StreamNotFound("There is no such stream.")
        return self._streams[key]

    def _digest(self, key: str) -> str | None:
        """The digest of the stream that holds *key*, or `None`."""
        if key in self._tombstones:
            return self._tombstones[key][1]
        stream = self._streams.get(key)
        return None if stream is None or stream.failed_empty else stream.digest

    # What is kept, and how long ---------------------------------------------------------------------------------

    def charge(self, size: int) -> None:
        """See `OwningLog.charge`."""
        if self.size + size <= self.max_log_bytes:
            self.size += size
        else:
            self._reserve(size, StreamTooLong)

    def closed(self, stream: MemoryStream) -> None:
        """See `OwningLog.closed`."""
        if stream.retain and not stream.abandoned:
            self._ended[stream.key] = self.clock()
            self._sweep()
        elif not stream.readers:
            self._forget(stream)
        elif stream.retain:  # the last reader forgets it
            self._disown(stream)

    def left(self, stream: MemoryStream) -> None:
        """See `OwningLog.left`."""
        if stream.end is not None and (stream.abandoned or not stream.retain):
            self._forget(stream)

    def _forget(self, stream: MemoryStream) -> None:
        """Removes a stream, unless it has been removed: another stream may have its key by now."""
        if self._streams.get(stream.key) is not stream:
            return
        del self._streams[stream.key]
        self._ended.pop(stream.key, None)
        if stream.retain:
            self._disown(stream)
        self.size -= stream.size + STREAM_OVERHEAD
        stream.size = 0

    def _disown(self, stream: MemoryStream) -> None:
        owned = self._owners.get(stream.about.owner, {})
        if owned.get(stream.key) is stream:
            del owned[stream.key]
            if not owned:
                del self._owners[stream.about.owner]

    def _reserve(self, size: int, error: type[OpenAISSEError]) -> None:
        """Counts *size* more bytes. Raises *error* if they exceed the limit even without any ended stream."""
        if self.size + size > self.max_log_bytes:
            self._sweep(room=size)
            if self.size + size > self.max_log_bytes:
                raise error("The stream log is full.")
        self.size += size

    def _sweep(self, *, room: int = 0) -> None:
        """Removes ended streams whose time is over, and the oldest ones while the log is full."""
        now = self.clock()
        while self._ended:
            key, ended = next(iter(self._ended.items()))
            if ended + self.retention > now and self.size + room <= self.max_log_bytes:
                break
            self._tombstones[key] = (now, self._streams[key].digest)
            self._forget(self._streams[key])
        while self._tombstones:
            key, (expired, _) = next(iter(self._tombstones.items()))
            if expired + self.tombstone > now and len(self._tombstones) <= _MAX_TOMBSTONES:
                break
            del self._tombstones[key]
        if self._timer is None and self._ended:  # memory is freed even if no request comes
            wait = max(0.0, next(iter(self._ended.values())) + self.retention - now)
            self._timer = asyncio.get_running_loop().call_later(wait + 0.1, self._on_timer, context=Context())

    def _on_timer(self) -> None:
        self._timer = None
        self._sweep()
