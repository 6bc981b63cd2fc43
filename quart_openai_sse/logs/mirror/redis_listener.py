"""The one connection on which a process hears messages: it survives every failure, and says so."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from contextvars import Context
from typing import Any

_log = logging.getLogger("quart_openai_sse")

FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0


class Listener:
    """Subscribes to channels. One task owns the connection; no other one reads from it or writes to it.

    *connect* returns a new connection of redis-py, *hear* is given a channel and each message, and *again* is called
    when all channels have been subscribed to again. After *ping* seconds of silence the server is asked whether it is
    there, and has *timeout* seconds to answer.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Any]],
        hear: Callable[[bytes, bytes], object],
        again: Callable[[], object],
        *,
        ping: float,
        timeout: float,
    ) -> None:
        self._connected = asyncio.Event()
        self._hurried = asyncio.Event()
        self._connect, self._hear, self._again = connect, hear, again
        self._ping, self._timeout = ping, timeout
        self._wanted: set[bytes] = set()
        self._sent: set[bytes] = set()
        self._confirmed: set[bytes] = set()
        self._unanswered: Counter[bytes] = Counter()  # SUBSCRIBEs by channel
        self._waiting: dict[bytes, list[asyncio.Future[None]]] = {}
        self._repeated: set[bytes] | None = None  # channels whose repeated subscription is not confirmed yet
        self._changed = asyncio.Event()
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether everything is subscribed to."""
        return self._connected.is_set()

    async def ready(self) -> None:
        """Tries to connect now, and returns when everything is subscribed to."""
        self._hurried.set()
        await self._connected.wait()

    async def open(self, channels: Iterable[bytes]) -> None:
        """Connects, and returns when *channels* are subscribed to."""
        self._wanted.update(channels)
        self._task = asyncio.create_task(self._run(), context=Context())
        await self._confirmation(self._wanted)

    async def aclose(self) -> None:
        """Disconnects, within half a second."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=0.5)
        for channel in list(self._waiting):
            self._resolve(channel, failed=True)

    async def add(self, channel: bytes) -> None:
        """Returns when *channel* is subscribed to. Raises `TimeoutError`."""
        self._wanted.add(channel)
        if channel in self._confirmed:
            return
        self._changed.set()
        try:
            await self._confirmation([channel])
        except BaseException:
            if channel not in self._waiting:
                self.discard([channel])
            raise

    def discard(self, channels: Iterable[bytes]) -> None:
        """Unsubscribes."""
        gone = set(channels)
        self._wanted -= gone
        if self._repeated is not None:
            self._repeated -= gone
        self._changed.set()

    def reconnect(self) -> None:
        """Gives the connection up for a new one."""
        self._lost.set()

    async def _confirmation(self, channels: Iterable[bytes]) -> None:
        loop = asyncio.get_running_loop()
        futures = {channel: loop.create_future() for channel in channels if channel not in self._confirmed}
        for channel, future in futures.items():
            self._waiting.setdefault(channel, []).append(future)
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.gather(*futures.values())
        finally:
            for channel, future in futures.items():
                if future in (waiting := self._waiting.get(channel, [])):
                    waiting.remove(future)
                    if not waiting:
                        del self._waiting[channel]

    async def _run(self) -> None:
        wait, told = FIRST_WAIT, False
        while True:
            self._hurried.clear()
            try:
                connection = await self._new_connection()
                try:
                    await self._session(connection)
                finally:
                    if self.connected:
                        wait, told = FIRST_WAIT, False
                    self._connected.clear()
                    await connection.disconnect(nowait=True)
            # Not only redis-py's own errors: a connection that breaks in mid-read raises whatever comes.
            except Exception as error:
                if not told:
                    _log.warning("the connection for messages from Redis was lost (%s)", _name(error))
                    told = True
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._hurried.wait()
            wait = min(LONGEST_WAIT, wait * 2)

    async def _new_connection(self) -> Any:
        async with asyncio.timeout(self._timeout):
            return await self._connect()

    async def _session(self, connection: Any) -> None:
        self._lost.clear()
        self._sent.clear()
        self._unanswered.clear()
        again = self._repeated is not None
        self._repeated = set(self._wanted)
        self._confirmed.clear()
        self._changed.set()
        tasks = [
            asyncio.create_task(self._send(connection)),
            asyncio.create_task(self._read(connection, again)),
            asyncio.create_task(self._lost.wait()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.2)

    async def _send(self, connection: Any) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if new := self._wanted - self._sent:
                self._sent |= new
                self._unanswered.update(new)
                await connection.send_command("SUBSCRIBE", *new)
            if old := self._sent - self._wanted:
                self._sent -= old
                self._confirmed -= old
                await connection.send_command("UNSUBSCRIBE", *old)

    async def _read(self, connection: Any, again: bool) -> None:
        asked = False
        while True:
            limit = self._timeout if asked or not self.connected else self._ping
            reply = await connection.read_response(timeout=limit, disconnect_on_error=False)
            if reply is None:
                if limit is not self._ping:
                    raise ConnectionError("The server is silent.")
                asked = True
                await connection.send_command("PING")
                continue
            asked = False
            kind, channel, data = (*reply, None)[:3] if isinstance(reply, list) else (reply, None, None)
            if kind == b"message":
                if channel in self._wanted:
                    self._deliver(channel, data)
            elif kind == b"subscribe":
                self._subscribed(channel, again)

    def _deliver(self, channel: bytes, data: bytes) -> None:
        try:
            self._hear(channel, data)
        except Exception:
            _log.exception("a message of the stream log could not be handled")

    def _subscribed(self, channel: bytes, again: bool) -> None:
        self._unanswered[channel] -= 1
        if self._unanswered[channel] > 0:
            return
        del self._unanswered[channel]
        if channel in self._sent:
            self._confirmed.add(channel)
            self._resolve(channel)
        if self.connected or self._repeated is None:
            return
        self._repeated.discard(channel)
        if not self._repeated:
            self._connected.set()
            if again:
                self._again()

    def _resolve(self, channel: bytes, *, failed: bool = False) -> None:
        for future in self._waiting.pop(channel, []):
            with suppress(asyncio.InvalidStateError):
                if failed:
                    future.set_exception(TimeoutError())
                else:
                    future.set_result(None)


def _name(error: Exception) -> str:
    return type(error).__name__
