"""The streams that run: each from its start to its end, and all of them at a shutdown."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.errors import (
    ErrorValue,
    LogUnavailable,
    OpenAISSEError,
    ProducerLost,
    ServerShutdown,
    StartAbandoned,
)
from quart_openai_sse.logs import Reader, Writer
from quart_openai_sse.logs.entries import End
from quart_openai_sse.observers import EventKind, StreamRecord
from quart_openai_sse.producers import CLEAN_UP
from quart_openai_sse.relay.background import Background
from quart_openai_sse.relay.departures import Departures
from quart_openai_sse.relay.hooks import HookCalls, Hooks
from quart_openai_sse.relay.readers import Readers
from quart_openai_sse.relay.running import LOST_TO_ANOTHER, RunningStream, StreamHandle
from quart_openai_sse.relay.stored_requests import encode_request

logger = logging.getLogger("quart_openai_sse")

SHUTTING_DOWN = "The server is shutting down."


class Streams:
    """The running streams of one engine, by their keys. *scope* is entered around producers and `on_end`.

    A log that is *shared* keeps an end that it could not store at once, and stores it later.
    """

    def __init__(
        self,
        config: Config,
        *,
        shared: bool,
        hooks: Hooks,
        calls: HookCalls,
        readers: Readers,
        background: Background,
        scope: Callable[[], AbstractAsyncContextManager[Any]],
    ) -> None:
        self._config = config
        self._shared = shared
        self._hooks = hooks
        self._calls = calls
        self.observe: Callable[[EventKind, StreamRecord], None] = partial(hooks.observe, calls=calls)
        """Reports an event of a stream."""
        self._readers = readers
        self._background = background
        self._scope = scope
        self._running: dict[str, RunningStream] = {}
        """Oldest first."""
        self._departures = Departures()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._running)

    def get(self, key: str) -> RunningStream | None:
        """The running stream of this key, if there is one."""
        return self._running.get(key)

    def stop_all(self, owner: str, reason: str) -> None:
        """Stops the streams of *owner*."""
        for stream in self._running.values():
            if stream.handle.owner == owner:
                stream.interrupt("stopped", reason)

    def run(self, stream: RunningStream, *, linger: float, shared: bool) -> None:
        """Starts the producer of *stream*. It is stopped when no reader has read it for *linger* seconds.

        *shared*: other processes can see it, and call `on_end` if this one dies.
        """
        if shared and self._hooks.on_end:
            request = encode_request(principal=stream.principal, body=stream.body, record=stream.record)
            stream.writer.keep(request)
        stream.writer.watch(
            stopped=partial(stream.interrupt, "stopped"),
            left=partial(self._departures.add, stream),
            lost=stream.lose,
            linger=linger,
        )
        loop = asyncio.get_running_loop()
        self._running[stream.handle.key] = stream
        if self._timer is None:
            self._timer = loop.call_later(self._config.max_duration, self._expire, context=Context())
        self.observe("started", stream.record)
        # Last: an eager task may run to the end of the stream here.
        stream.task = loop.create_task(self._live(stream))

    async def stored(self, stream: RunningStream) -> StreamHandle:
        """The stream's handle, once other processes can find it: only then is a client told its id.

        Raises `LogUnavailable`, and then ends the stream, which has begun to run meanwhile.
        """
        try:
            await stream.writer.stored()
        except BaseException as error:
            if isinstance(error, LogUnavailable):
                stream.interrupt("failed", error.code or "", error)
            # If the request was cancelled, the stream lingers like any other whose client has left.
            if stream.handle.reader is not None:
                await self._readers.leave(stream.handle.reader)
            raise
        return stream.handle

    async def close(self, handle: StreamHandle, writer: Writer, end: End) -> None:
        """Writes the end of a stream to its log. If the log loses it, readers end without it, which is a failure."""
        try:
            await writer.close(end)
        except Exception as error:
            if self._shared and isinstance(error, LogUnavailable):  # its readers get the end from the log
                logger.warning("stream %s: the end is stored when the stream log is back: %s", handle.id, error)
                return
            logger.exception("stream %s: the end could not be stored", handle.id)
            await self._readers.cut(handle)

    async def refuse(self, handle: StreamHandle, writer: Writer, error: BaseException | None = None) -> None:
        """Ends a stream whose start failed with *error*. It does not hold its key."""
        refusal = error if isinstance(error, OpenAISSEError) else StartAbandoned()
        await self.close(handle, writer, End("failed", refusal.code or "", ErrorValue.of(refusal)))

    async def take_back(
        self, handle: StreamHandle, writer: Writer | None, reader: Reader | None, error: BaseException
    ) -> None:
        """Ends what a start that failed with *error* has created."""
        try:
            if reader is not None:
                await self._readers.leave(reader)
        finally:
            if writer is not None:
                await self.refuse(handle, writer, error)

    async def drain(self, timeout: float) -> None:
        """Waits *timeout* seconds for the running streams, and ends the rest as failed."""
        await self._wait(timeout)
        for stream in list(self._running.values()):
            stream.interrupt("failed", "server_shutdown", ServerShutdown(SHUTTING_DOWN))
        await self._wait(CLEAN_UP + self._config.on_end_timeout)

    async def aclose(self) -> None:
        """Ends the streams that still run."""
        await self.drain(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _live(self, stream: RunningStream) -> None:
        """The life of one stream: it ends exactly once, and its place is free afterwards."""
        end: End | None = None
        try:
            async with self._scope():
                if self._hooks.observers:
                    # In a copy of the task's context: upstream data arrives in the context of the connection.
                    first = partial(copy_context().run, self.observe, "first_chunk", stream.record)
                    stream.intake.on_first = first
                end = await stream.produce(self._background)
                if self._hooks.on_end and not stream.lost:
                    if await stream.writer.decide(end):
                        stream.complete_record(end)
                        # Before the readers see the end: a client that reads "completed" can rely on what was stored.
                        await self._hooks.run_on_end(stream.stream_end(end), calls=self._calls)
                    else:  # another process has ended it, and calls the hooks
                        stream.lose()
                        end = stream.failed(ProducerLost(LOST_TO_ANOTHER))
        except Exception:
            logger.exception("stream %s: the app context raised", stream.handle.id)
        finally:
            end = end or stream.failed(OpenAISSEError("The stream failed."))
            stream.complete_record(end)
            stream.place.release()
            try:
                if not stream.lost:
                    await self.close(stream.handle, stream.writer, end)
            finally:
                # Once the end is stored, another stream may have the key of one that failed without output.
                if self._running.get(stream.handle.key) is stream:
                    del self._running[stream.handle.key]
                self.observe("ended", stream.record)

    def _expire(self) -> None:
        """Ends the streams that ran for too long. One timer serves all: it is set for the oldest."""
        now = time.monotonic()
        for stream in self._running.values():
            due = stream.intake.began + self._config.max_duration
            if due > now:
                self._timer = asyncio.get_running_loop().call_later(due - now, self._expire, context=Context())
                return
            stream.expire()
        self._timer = None

    async def _wait(self, timeout: float) -> None:
        if tasks := [stream.task for stream in self._running.values()]:
            await asyncio.wait(tasks, timeout=timeout)
