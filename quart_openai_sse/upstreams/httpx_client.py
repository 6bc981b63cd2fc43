"""The client for upstreams on any client with httpx's API; it keeps httpcore from losing connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import anyio
import httpx

from quart_openai_sse.config import Config
from quart_openai_sse.flow import MORE, Flow
from quart_openai_sse.transport import Feed
from quart_openai_sse.upstreams.http import REST, WRITE_TIMEOUT, Answer, Outgoing, is_unreadable

T = TypeVar("T")


class HttpxClient:
    """Sends requests through *client*; by default through a new `httpx.AsyncClient`, which supports proxies."""

    def __init__(self, config: Config, client: Any = None) -> None:
        self.client = _create_client(config) if client is None else client
        self._owned = client is None
        self._connect_timeout = config.connect_timeout
        self._abandoned: set[asyncio.Future[Any]] = set()

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """See `Client.run`."""
        return await run_shielding(function, hold=self._hold)

    async def send(self, outgoing: Outgoing) -> Answer:
        """See `Client.send`.

        httpcore loses a pool slot for good when a request is cancelled while it connects, or is about to
        (encode/httpcore#1093). So a cancelled request that has no connection yet goes on in the background until it has
        one, and ends before anything is sent.
        """
        request = self.client.build_request(
            outgoing.method,
            outgoing.url,
            content=outgoing.content or None,
            headers=outgoing.headers,
            # A tuple (connect, read, write, pool), because httpx and httpx2 have different Timeout classes.
            timeout=(self._connect_timeout, None, WRITE_TIMEOUT, self._connect_timeout),
        )
        phase = _Phase(connecting=self._owned)
        try:
            return _HttpxAnswer(await self._send_once(request, phase))
        except Exception as error:
            if not phase.stale or is_unreadable(error):
                raise
        # The server has closed a persistent connection (RFC 9112, 9.3.1).
        return _HttpxAnswer(await self._send_once(request, _Phase(connecting=self._owned)))

    async def aclose(self) -> None:
        """See `Client.aclose`. A client that was given stays open."""
        if self._abandoned:
            await asyncio.wait(self._abandoned)
        if self._owned:
            await self.client.aclose()

    async def _send_once(self, request: Any, phase: _Phase) -> Any:
        request.extensions = {**request.extensions, "trace": phase.trace}

        async def send() -> Any:
            with phase.scope:
                return await self.client.send(request, stream=True)

        sending = asyncio.ensure_future(send())
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            if phase.connecting:
                phase.abandoned = True
            else:
                phase.scope.cancel()
            self._hold(sending)
            sending.add_done_callback(self._discard)
            raise

    def _discard(self, sending: asyncio.Task[Any]) -> None:
        if not sending.cancelled() and sending.exception() is None and (response := sending.result()) is not None:
            self._hold(response.aclose())

    def _hold(self, awaitable: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(awaitable)
        self._abandoned.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Future[Any]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, because no other code does


def _create_client(config: Config) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        http2=False,  # httpx sends no RST_STREAM for a cancelled HTTP/2 request: the model would go on
        trust_env=config.trust_env,
        limits=httpx.Limits(
            max_connections=config.max_connections,
            max_keepalive_connections=config.max_keepalive_connections,
            keepalive_expiry=config.keepalive_expiry,
        ),
    )


class _HttpxAnswer:
    """See `Answer`. Our own transport pushes the body; that of any other is iterated over."""

    def __init__(self, response: Any) -> None:
        self.status: int = response.status_code
        self.headers = response.headers
        self._response = response
        self._pieces = response.aiter_raw()

    async def push(self, feed: Feed) -> Flow:
        if (push := self._response.extensions.get("push")) is not None:
            flow: Flow = await push(feed)
            return flow
        async for data in self._pieces:
            if (flow := feed(data)) is not MORE:
                return flow
        return MORE

    async def finish(self) -> None:
        with suppress(Exception), anyio.move_on_after(REST):  # the answer is complete in any case
            await self.push(lambda _: MORE)

    async def aclose(self) -> None:
        try:
            await self._pieces.aclose()
        finally:
            await self._response.aclose()


class _Phase:
    """The phase of a request, from httpcore's trace extension."""

    abandoned = False
    _connected = _sent = _answered = False

    def __init__(self, *, connecting: bool) -> None:
        self.connecting = connecting
        self.scope = anyio.CancelScope()

    @property
    def stale(self) -> bool:
        """Whether it was sent on a connection that was used before, and no response has begun."""
        return self._sent and not self._connected and not self._answered

    async def trace(self, name: str, info: Mapping[str, Any]) -> None:
        if name == "connection.connect_tcp.started":
            self.connecting = self._connected = True
        elif name.endswith(".send_request_headers.started"):
            self.connecting = False
            self._sent = True
            if self.abandoned:
                raise asyncio.CancelledError
        elif name.endswith(".receive_response_headers.complete"):
            self._answered = True


async def run_shielding(function: Callable[[], Awaitable[T]], *, hold: Callable[[Awaitable[Any]], object]) -> T:
    """The result of *function*, run in a task that is cancelled by an anyio scope.

    httpcore cleans up within a shielded anyio scope. A task that asyncio cancels during that leaves its connection in
    the pool for ever. *hold* is called with the task if the caller is cancelled.
    """
    scope = anyio.CancelScope()

    async def run() -> T:
        with scope:
            return await function()
        raise asyncio.CancelledError  # the scope was cancelled, and does not raise that itself

    running = asyncio.ensure_future(run())
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        scope.cancel()
        hold(running)
        await asyncio.wait({running})
        raise
