"""Requests of the auth hooks to other servers: one bounded GET, shared by all requests that wait for it."""

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
from quart_openai_sse.protocol import json

T = TypeVar("T")

ClientFactory = Callable[[], Any]
"""Creates a client with httpx's API for one request, for example with a proxy or a private certificate authority."""

_MAX_ANSWER = 1 << 20  # bytes


def check_address(url: str, hook_name: str) -> None:
    """Raises `ConfigurationError` unless *url* is an http or https URL without credentials; never quotes *url*."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        valid = False
    if not valid:
        raise ConfigurationError(f"{hook_name}: the address must be an http or https URL without credentials.")


class BadAnswer(ValueError):
    """The other server's answer is invalid. The text gives the reason and quotes nothing of the answer."""


def describe_failure(error: Exception) -> str:
    """*error* for a log line: the text of a `BadAnswer`, else only the class, since a text could quote a cookie."""
    return str(error) if isinstance(error, BadAnswer) else type(error).__name__


async def fetch(
    url: str, *, headers: Mapping[str, bytes], client: ClientFactory | None
) -> tuple[httpx.Response, bytes]:
    """The response to one GET, and its body. Redirects are not followed.

    Each call opens and closes a client of its own, so it works on any event loop. There is no timeout: the caller
    sets one. Raises the client's errors, and `BadAnswer` if the body is compressed or larger than 1 MiB.
    """
    sent = {b"Accept": b"application/json", b"Accept-Encoding": b"identity"}
    sent |= {name.encode(): value for name, value in headers.items()}
    create = client or partial(httpx.AsyncClient, verify=_authorities(), trust_env=False, timeout=None)
    async with create() as http, http.stream("GET", url, headers=sent, follow_redirects=False) as response:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise BadAnswer("it is compressed although identity was requested")  # it could be a decompression bomb
        body = bytearray()
        async for data in response.aiter_bytes():
            body += data
            if len(body) > _MAX_ANSWER:
                raise BadAnswer(f"it is larger than {_MAX_ANSWER} bytes")
        return response, bytes(body)


def read_member(body: bytes, name: str) -> Any:
    """The member *name* of the JSON object in *body*. Raises `BadAnswer`, which says what is missing."""
    try:
        answer = json.decode(body)
    except ValueError:
        raise BadAnswer("the answer is not JSON") from None
    if not isinstance(answer, dict):
        raise BadAnswer("the answer is not a JSON object")
    if name not in answer:
        raise BadAnswer(f"the answer has no member {name!r}")
    return answer[name]


@cache
def _authorities() -> ssl.SSLContext:
    """The certificate authorities, read once: reading them takes longer than a request."""
    return httpx.create_ssl_context()


class PerLoop(Generic[T]):
    """One object for each event loop, created when it is first needed."""

    def __init__(self, create: Callable[[], T]) -> None:
        self._create = create
        self._made: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()

    def get(self) -> T:
        """The running event loop's object."""
        loop = asyncio.get_running_loop()
        if (made := self._made.get(loop)) is None:
            made = self._made[loop] = self._create()
        return made


class SingleFlight(Generic[T]):
    """Runs one task per key, however many callers wait for it. A cancelled caller does not cancel the task."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tasks

    async def run(self, key: Hashable, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Waits for the task of *key*, started with *function* if none runs. Returns or raises what the task does."""
        return await asyncio.shield(self.start(key, function))

    def start(self, key: Hashable, function: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """The running task of *key*, started with *function* if none runs."""
        if (task := self._tasks.get(key)) is None:
            task = self._tasks[key] = asyncio.ensure_future(function())
            task.add_done_callback(partial(self._finished, key))
        return task

    def _finished(self, key: Hashable, task: asyncio.Task[T]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio logs an error if no caller waits any more
