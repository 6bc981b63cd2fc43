"""Asking another server who somebody is: one bounded GET, once at a time, whatever the event loop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Hashable, Mapping
from functools import cache, partial
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httpx

from quart_openai_sse.errors import ConfigurationError

T = TypeVar("T")

ClientFactory = Callable[[], Any]
"""Makes a client with httpx's API, for one request: with the proxies or the private authority that it takes."""

_MAX_ANSWER = 1 << 20  # bytes


def check_address(url: str, who: str) -> None:
    """Raises `ConfigurationError` unless *url* is an http or https address without credentials; never quotes it."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        valid = False
    if not valid:
        raise ConfigurationError(f"{who} needs an http or https address, without credentials in it.")


class BadAnswer(ValueError):
    """Somebody else's answer is not what it should be. Its text says why, and quotes nothing of it."""


def what_failed(error: Exception) -> str:
    """For a log line. Without a foreign text: that could quote a cookie or a token."""
    return str(error) if isinstance(error, BadAnswer) else type(error).__name__


async def fetch(
    url: str, *, headers: Mapping[str, bytes], client: ClientFactory | None
) -> tuple[httpx.Response, bytes]:
    """The answer to one GET, and its body. By a client of its own: nothing is left open, and any event loop will do.

    Raises the client's errors, and `BadAnswer` for one that is too large. How long it may take is the caller's affair.
    """
    sent = {b"Accept": b"application/json", b"Accept-Encoding": b"identity"}
    sent |= {name.encode(): value for name, value in headers.items()}
    create = client or partial(httpx.AsyncClient, verify=_authorities(), trust_env=False, timeout=None)
    async with create() as http, http.stream("GET", url, headers=sent, follow_redirects=False) as response:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise BadAnswer("it is compressed, which was not asked for")  # a bomb, perhaps
        body = bytearray()
        async for data in response.aiter_bytes():
            body += data
            if len(body) > _MAX_ANSWER:
                raise BadAnswer(f"it is larger than {_MAX_ANSWER} bytes")
        return response, bytes(body)


@cache
def _authorities() -> ssl.SSLContext:
    """Read once: that takes longer than a request."""
    return httpx.create_ssl_context()


class PerLoop(Generic[T]):
    """One of something for each event loop, made when first needed."""

    def __init__(self, create: Callable[[], T]) -> None:
        self._create = create
        self._made: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()

    def get(self) -> T:
        """That of the running event loop."""
        loop = asyncio.get_running_loop()
        if (made := self._made.get(loop)) is None:
            made = self._made[loop] = self._create()
        return made


class SingleFlight(Generic[T]):
    """One task for each key, however many wait for it. Who stops waiting does not end it for the others."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tasks

    async def run(self, key: Hashable, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What *function* returns or raises, or what it will, if it has been called for *key* before."""
        return await asyncio.shield(self.start(key, function))

    def start(self, key: Hashable, function: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """The task of *key*."""
        if (task := self._tasks.get(key)) is None:
            task = self._tasks[key] = asyncio.ensure_future(function())
            task.add_done_callback(partial(self._over, key))
        return task

    def _over(self, key: Hashable, task: asyncio.Task[T]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # seen, also if nobody waits any more
