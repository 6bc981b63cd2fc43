"""OpenAI's API, or a server compatible with it, as an upstream."""

from __future__ import annotations

import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from copy import copy
from functools import cached_property, lru_cache, partial
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies

from quart_openai_sse.config import Config
from quart_openai_sse.errors import (
    ConnectTimeout,
    OpenAISSEError,
    UpstreamCredentials,
    UpstreamError,
    UpstreamQuota,
    UpstreamRefused,
    UpstreamTruncated,
    UpstreamUnreachable,
    UpstreamUnreadable,
)
from quart_openai_sse.flow import ENOUGH, MORE, PAUSE, Flow
from quart_openai_sse.principal import Principal
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.trace_context import current_trace_id
from quart_openai_sse.upstreams import Attempt, Sink
from quart_openai_sse.upstreams.deadlines import Deadlines
from quart_openai_sse.upstreams.http import Answer, Client, DirectClient, Outgoing, is_unreadable
from quart_openai_sse.upstreams.httpx_client import HttpxClient
from quart_openai_sse.upstreams.listing import PATIENCE, UNNAMED, read_models
from quart_openai_sse.upstreams.refusals import log_withheld, refusal
from quart_openai_sse.upstreams.retries import weight

T = TypeVar("T")

_TRACE = re.compile(r"[0-9a-f]{32}")  # what W3C's traceparent can carry


class OpenAIUpstream:
    """OpenAI's API, or a compatible server. *client* is any client with httpx's API; by default our own transport."""

    def __init__(self, config: Config, *, client: Any = None, name: str = "") -> None:
        self.name = name or urlsplit(config.base_url).netloc
        self.public_name = name or UNNAMED  # callers are not told the address
        self.is_openai = config.asks_openai
        self._config = config
        self._given = client
        # httpx knows which proxy is for which address.
        proxies = config.trust_env and getproxies().keys() - {"no"}
        self._direct = client is None and config.own_transport and not proxies
        self.cancels_at_once = self._direct and not callable(
            config.api_key
        )  # a key function of the app may not end at once
        self._keys = deque(config.api_keys or [None])
        self._models: tuple[float, list[dict[str, Any]]] | None = None

    async def run(self, request: Mapping[str, Any], sink: Sink, *, principal: Principal) -> None:
        """See `Upstream.run`. With several keys, a request whose key is refused is sent with the next one at once.

        So is one whose key has no credit or quota left, or is over its rate limit. If all are refused, and one of them
        for its rate only, that is the error: the key may be used again.
        """
        passing: UpstreamRefused | None = None  # of the key that may be used first again
        for more in reversed(range(len(self._keys))):
            key = self._keys[0]
            try:
                await self._run(request, sink, principal)
                return
            except (UpstreamCredentials, UpstreamQuota, UpstreamRefused) as error:
                if sink.started or (isinstance(error, UpstreamRefused) and error.status != 429):
                    raise
                if not more and (passing is None or weight(passing) <= weight(error)):
                    raise
                log_withheld(self.name, error, request)
                if key == self._keys[0]:  # otherwise another request has done it
                    self._keys.rotate(-1)
                sink.failed(Attempt(self.name, error, 0.0 if more else None))
                if more:
                    sink.begin(self.name)
                if isinstance(error, UpstreamRefused) and (passing is None or weight(passing) < weight(error)):
                    passing = copy(error)  # without the traceback, which would keep the request in memory
        if passing is not None:  # the last key is refused for longer
            raise passing

    async def _run(self, request: Mapping[str, Any], sink: Sink, principal: Principal) -> None:
        config, model = self._config, request.get("model") or ""
        deadlines = Deadlines(
            total=config.total_timeout,
            first_output=config.first_output_timeouts.get(model, config.first_output_timeout),
            gap=config.gap_timeouts.get(model, config.gap_timeout),
            progress=sink if request.get("stream") else None,
        )
        async with deadlines:
            use = partial(_feed, sink, deadlines, config.require_finish_reason)
            await self._client.run(partial(self._request, "POST", "/chat/completions", request, principal, use))

    async def models(self, *, principal: Principal) -> list[dict[str, Any]]:
        """See `Upstream.models`. The list is kept for a minute, unless the key depends on the principal."""
        if self._models is not None and self._models[0] > time.monotonic() and not callable(self._config.api_key):
            return self._models[1]
        async with Deadlines(total=PATIENCE):
            models = await self._client.run(partial(self._request, "GET", "/models", None, principal, _list))
        self._models = (time.monotonic() + 60, models)
        return models

    async def aclose(self) -> None:
        """See `Upstream.aclose`. A client that was given stays open."""
        # A new client is made when it is needed: an upstream may be used again, on another event loop.
        if (client := self.__dict__.pop("_client", None)) is not None:
            await client.aclose()

    @cached_property
    def _client(self) -> Client:
        return DirectClient(self._config) if self._direct else HttpxClient(self._config, self._given)

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        principal: Principal,
        use: Callable[[Answer], Awaitable[T]],
    ) -> T:
        """Sends a request, and returns what *use* returns for the answer."""
        key = self._keys[0] or self._config.api_key
        key = await key(principal) if callable(key) else key
        if not key and self.is_openai:
            raise UpstreamCredentials("OpenAI needs a key: set the option api_key, or OPENAI_API_KEY.")
        if key and not (key.isascii() and key.isprintable()):
            raise UpstreamCredentials("The upstream's key holds characters that no header can carry.")
        answered = False
        try:
            answer = await self._send(method, path, body, key)
            answered = True
            try:
                return await use(answer)
            finally:
                await answer.aclose()
        except UpstreamError as failed:
            if key and len(key) >= 8:  # a shorter one may be a common word
                _redact(key, failed)
            raise
        except Exception as error:
            if (failure := _translated(error, answered=answered)) is None:
                raise
            # Without its cause: httpx's error about an illegal header value quotes our key.
            raise failure from None

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None, key: str | None) -> Answer:
        """The answer, as soon as its head has arrived. The encoded request is not held longer than that."""
        url, headers = _url(self._config.base_url, path), self._headers(key)
        return await self._client.send(Outgoing(method, url, headers, b"" if body is None else json.encode(body)))

    def _headers(self, key: str | None) -> dict[str, str]:
        config = self._config
        headers = {
            "Accept": "application/json, text/event-stream",
            # A compressor would hold events back.
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": "quart-openai-sse",
        }
        if key:
            bearer = config.api_key_header.lower() == "authorization"
            headers[config.api_key_header] = f"Bearer {key}" if bearer else key
        if config.organization:
            headers["OpenAI-Organization"] = config.organization
        if config.project:
            headers["OpenAI-Project"] = config.project
        if trace_id := current_trace_id():
            headers["X-Trace-ID"] = trace_id
            if _TRACE.fullmatch(trace_id):
                headers["traceparent"] = f"00-{trace_id}-{secrets.token_hex(8)}-01"
        return {**headers, **config.headers}


async def _feed(sink: Sink, deadlines: Deadlines, require_finish_reason: bool, answer: Answer) -> None:
    """Feeds an answer to *sink*."""
    if require_finish_reason:
        sink.head(answer.status, answer.headers)
    else:
        sink.head(answer.status, answer.headers, require_finish_reason=False)
    if not 200 <= answer.status < 300 or answer.status == 204:  # No Content
        raise refusal(answer.status, answer.headers, await _refused(answer))
    while (flow := await answer.push(sink.feed)) is PAUSE:
        deadlines.pause()
        await sink.room()
        deadlines.resume()
    sink.finish()
    if flow is ENOUGH:
        deadlines.pause()
        await answer.finish()


async def _list(answer: Answer) -> list[dict[str, Any]]:
    """The models that an answer lists."""
    if not 200 <= answer.status < 300:
        raise refusal(answer.status, answer.headers, await _refused(answer))
    body = bytearray()
    await _fill(body, answer, limit=4 << 20)
    return read_models(bytes(body))


async def _refused(answer: Answer) -> bytes:
    """The beginning of the body of a refusal, as far as it arrives: its status counts even if the connection breaks."""
    body = bytearray()
    try:
        await _fill(body, answer, limit=64 << 10)
    except Exception as error:
        if not isinstance(_translated(error, answered=True), UpstreamTruncated):
            raise
    return bytes(body)


async def _fill(body: bytearray, answer: Answer, *, limit: int) -> None:
    """Fills *body* with the whole body of an answer, or with its first *limit* bytes."""

    def feed(data: bytes) -> Flow:
        body.extend(data[: limit - len(body)])
        return MORE if len(body) < limit else ENOUGH

    await answer.push(feed)


def _redact(key: str, error: UpstreamError) -> None:
    """Replaces our *key* in an error of the upstream."""
    error.withheld = tuple(each.replace(key, "[key]") for each in error.withheld)
    if not isinstance(error, UpstreamRefused):
        return
    error.args = (error.message.replace(key, "[key]"),)
    error.type = error.type.replace(key, "[key]")
    for member in ("code", "param"):
        if (value := getattr(error, member)) is not None:
            setattr(error, member, value.replace(key, "[key]"))
    if error.passed_on and key in repr(error.passed_on):
        error.passed_on = None


@lru_cache(maxsize=64)
def _url(base: str, path: str) -> str:
    """The address of *path* below *base*. The query of *base* (Azure's `api-version`) is kept."""
    parts = urlsplit(base)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path))


def _translated(error: Exception, *, answered: bool) -> OpenAISSEError | None:
    """Our error for one of httpx or httpx2, whose classes have the same names; `None` for any other."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if "ConnectTimeout" in names:
        return ConnectTimeout("The connection to the upstream was not established in time.")
    if "PoolTimeout" in names:
        return UpstreamUnreachable("All connections to the upstream are in use.", code="upstream_pool_exhausted")
    if "TransportError" in names and is_unreadable(error):
        return UpstreamUnreadable("The upstream responded with something that is not valid HTTP/1.1.")
    if "TransportError" in names and answered:
        return UpstreamTruncated("The connection to the upstream broke within its answer.")
    if "TransportError" in names:
        return UpstreamUnreachable(f"The upstream cannot be reached ({type(error).__name__}).")
    return None
