"""A stream as its producer knows it, and a client that reads it: each checks what the log says."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from quart_openai_sse.errors import (
    ErrorValue,
    InvalidLastEventID,
    LogUnavailable,
    StreamExpired,
    StreamNotFound,
    UpstreamTruncated,
)
from quart_openai_sse.flow import Flow
from quart_openai_sse.logs import Batch, End, Entry, Reader, Writer
from quart_openai_sse.logs.entries import LOST

if TYPE_CHECKING:
    from tests.logs.mirror.chances.world import World

TRUNCATED = End("failed", "upstream_truncated", ErrorValue.of(UpstreamTruncated()))
RETRY = 0.5
"""Seconds after which a client tries again."""


class Produced:
    """A stream and its producer."""

    def __init__(self, world: World, key: str, process: int, writer: Writer, *, has_digest: bool) -> None:
        self.has_digest = has_digest
        self.world, self.key, self.process, self.writer = world, key, process, writer
        self.began = world.time()
        self.texts: list[bytes] = []
        self.end: End | None = None
        self.lost = False
        self.replaced = False
        """Whether a request was repeated after the store had forgotten the stream, and has begun another one."""
        self.closing: asyncio.Task[None] | None = None
        writer.watch(stopped=self._stopped, left=lambda: None, lost=self._lost, linger=1e9)

    def append(self, number: int, size: int) -> None:
        """Appends *number* entries, each of which is unlike any other."""
        texts = [
            f"{self.key}:{self.process}:{len(self.texts) + each}:".encode() + b"x" * size
            for each in range(1, number + 1)
        ]
        flow = self.writer.append([Entry(text) for text in texts])
        if flow is Flow.ENOUGH:
            self.world.check(self.end is not None or self.lost, f"{self}: append returned ENOUGH for a running stream")
        else:
            self.texts += texts

    def close(self, outcome: str, reason: str = "") -> None:
        """Ends the stream in a task, as a relay does."""
        if self.end is None and not self.lost:
            count = {"total_tokens": len(self.texts)}
            self.end = {"completed": End("completed", usage=count), "stopped": End("stopped", reason, usage=count)}.get(
                outcome, TRUNCATED
            )
            self.closing = asyncio.create_task(self._close(self.end))

    async def _close(self, end: End) -> None:
        await self.writer.decide(end)
        with suppress(LogUnavailable):  # the log goes on trying
            await self.writer.close(end)

    def _stopped(self, reason: str) -> None:
        self.world.check(reason.startswith("step "), f"{self}: stopped by {reason!r}")
        self.close("stopped", reason)

    def _lost(self) -> None:
        may_be = self.replaced or self.world.was_dead(self) or self.world.was_forgotten(self)
        self.world.check(may_be, f"{self}: told that it was lost, but its process was never silent")
        self.lost = True

    def __str__(self) -> str:
        return f"stream {self.key} of process {self.process}"


class Client:
    """A client that reads one stream to its end, from one process or the other."""

    def __init__(self, world: World, name: str, stream: Produced, process: int) -> None:
        self.world, self.name, self.stream, self.process = world, name, stream, process
        self.had = 0
        self.end: End | None = None
        self.gone = ""
        self.last = ""
        self._reader: Reader | None = None
        self._hops = False
        self.reading = asyncio.create_task(self._read())

    async def hop(self) -> None:
        """Goes on at the other process."""
        self.process = 1 - self.process
        if self._reader is not None:
            self._hops = True
            await self._reader.aclose()

    def __str__(self) -> str:
        return f"client {self.name} of {self.stream} at process {self.process} with {self.had} entries"

    async def _read(self) -> None:
        while self.end is None and not self.gone:
            try:
                reader = self._reader = await self.world.logs[self.process].read(self.stream.key, after=self.last)
            except LogUnavailable:
                await asyncio.sleep(RETRY * self.world.pace)
            except (StreamNotFound, StreamExpired) as error:
                self._miss(error)
            except InvalidLastEventID:
                self.world.check(False, f"{self}: its place is invalid")
            else:
                await self._drain(reader)

    async def _drain(self, reader: Reader) -> None:
        self._hops = False
        try:
            async for batch in reader:
                self._take(batch)
                if self._hops:
                    break
            if self.end is None and not self._hops:  # as it does when the stream was erased, or evicted after its end
                self.gone = "erased"
                self.world.check(self.world.may_be_gone(self.stream, "StreamExpired"), f"{self}: there was no end")
        except LogUnavailable:
            await asyncio.sleep(RETRY * self.world.pace)
        except (StreamNotFound, StreamExpired) as error:  # while it read from the store
            self._miss(error)
        finally:
            self._reader = None
            await reader.aclose()

    def _miss(self, error: Exception) -> None:
        self.gone = type(error).__name__
        self.world.check(self.world.may_be_gone(self.stream, self.gone), f"{self} got {self.gone}")

    def _take(self, batch: Batch) -> None:
        stream = self.stream
        self.world.check(self.end is None, f"{self}: a batch after the end")
        if batch.entries or batch.end is None:  # a place that the store has lost gets the end alone
            self.world.check(batch.first == self.had + 1, f"{self}: a batch that begins with {batch.first}")
        for place, entry in enumerate(batch.entries, batch.first):
            self.world.check(
                place <= len(stream.texts), f"{self}: entry {place} was never appended: {entry.data[:40]!r}"
            )
            self.world.check(entry.data == stream.texts[place - 1], f"{self}: entry {place} is {entry.data[:40]!r}")
            self.had, self.last = place, batch.id(place)
        if batch.end is not None:
            self.end = batch.end
            self._check_end(batch.end)

    def _check_end(self, end: End) -> None:
        stream = self.stream
        if stream.replaced:
            return
        if end == stream.end:
            self.world.check(
                self.had == len(stream.texts), f"{self}: {end.outcome} before its last entry, {len(stream.texts)}"
            )
        else:
            evicted = end == LOST and self.world.may_be_gone(stream, "StreamExpired")
            is_lost = end.reason == "producer_lost"
            self.world.check(evicted or is_lost, f"{self}: ended with {end} instead of {stream.end}")
            may_be = evicted or self.world.was_dead(stream) or self.world.may_be_gone(stream, "")
            self.world.check(may_be, f"{self}: lost, but the producer's process was never silent")
