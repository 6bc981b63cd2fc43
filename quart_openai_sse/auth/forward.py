"""Forward auth: the hook that asks another app who the request's cookies belong to."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from hashlib import sha256
from time import monotonic
from urllib.parse import urlsplit

import httpx
from quart import request

from quart_openai_sse.auth.hooks import Authenticate
from quart_openai_sse.auth.lookups import (
    BadAnswer,
    ClientFactory,
    PerLoop,
    SingleFlight,
    check_address,
    fetch,
    what_failed,
)
from quart_openai_sse.errors import AuthUnavailable
from quart_openai_sse.principal import Principal, is_id
from quart_openai_sse.protocol import json

__all__ = ["forward_auth"]

logger = logging.getLogger("quart_openai_sse")

_MAX_LOOKUPS = 100  # at a time, of one hook on one event loop


def forward_auth(
    url: str,
    *,
    realm: str = "forward",
    id_header: str = "",
    forward: Collection[str] = ("User-Agent", "X-Forwarded-For"),
    ttl: float = 10,
    negative_ttl: float = 1,
    max_entries: int = 10_000,
    timeout: float = 5,
    client: ClientFactory | None = None,
) -> Authenticate:
    """Asks another app who the request's cookies belong to: for sessions that are kept on its server.

    It is sent a GET to *url* with the cookies and the headers named by *forward*, which are what Flask-Login's session
    protection looks at. A 200 with `{"id": …}`, or with *id_header*, says who; an id of `null`, a redirect, 401 and
    403 say nobody; from anything else, or nothing within *timeout*, follows `AuthUnavailable` (503). What it said
    holds for *ttl* seconds, "nobody" for *negative_ttl*, for the last *max_entries* callers.
    """
    check_address(url, "forward_auth")
    names = {name.title() for name in forward} - {"Cookie"}
    apps = PerLoop(
        lambda: _OtherApp(
            partial(fetch, url, client=client),
            name=urlsplit(url).netloc,
            id_header=id_header,
            timeout=timeout,
            ttl=ttl,
            negative_ttl=negative_ttl,
            max_entries=max_entries,
        )
    )

    async def hook() -> Principal | None:
        cookies = "; ".join(request.headers.getlist("Cookie"))
        if not cookies:
            return None
        headers = {"Cookie": cookies, "User-Agent": ""}  # without the latter, httpx would name itself
        headers |= {name: ", ".join(request.headers.getlist(name)) for name in names if name in request.headers}
        user = await apps.get().user({name: value.encode("latin-1") for name, value in headers.items()})
        return None if user is None else Principal(user, realm=realm, cookie=True)

    return hook


class _OtherApp:
    """The app that knows the users, as one event loop sees it: asked once at a time, its answers kept for a while."""

    def __init__(
        self,
        get: Callable[..., Awaitable[tuple[httpx.Response, bytes]]],
        *,
        name: str,
        id_header: str,
        timeout: float,
        ttl: float,
        negative_ttl: float,
        max_entries: int,
    ) -> None:
        self._get = get
        self._name = name
        self._id_header = id_header
        self._timeout = timeout
        self._ttl = ttl
        self._negative_ttl = negative_ttl
        self._max_entries = max_entries
        self._known: OrderedDict[bytes, tuple[float, str | None]] = OrderedDict()
        self._flights: SingleFlight[str | None] = SingleFlight()
        self._slots = asyncio.Semaphore(_MAX_LOOKUPS)

    async def user(self, headers: Mapping[str, bytes]) -> str | None:
        """The id of who sends these headers, or `None` for nobody. Raises `AuthUnavailable`."""
        parts = sorted((name.encode(), value) for name, value in headers.items())
        # A digest, because a cookie is a credential.
        key = sha256(b"".join(b"%b:%d:%b" % (name, len(value), value) for name, value in parts)).digest()
        until, user = self._known.get(key, (0.0, None))
        if monotonic() < until:
            self._known.move_to_end(key)
            return user
        return await self._flights.run(key, lambda: self._look_up(key, headers))

    async def _look_up(self, key: bytes, headers: Mapping[str, bytes]) -> str | None:
        begun = monotonic()  # an answer that is long on its way does not hold longer
        user = await self._ask(headers)
        self._known[key] = (begun + (self._negative_ttl if user is None else self._ttl), user)
        self._known.move_to_end(key)
        while len(self._known) > self._max_entries:
            self._known.popitem(last=False)
        return user

    async def _ask(self, headers: Mapping[str, bytes]) -> str | None:
        try:
            async with asyncio.timeout(self._timeout), self._slots:
                return self._read(*await self._get(headers=headers))
        except Exception as error:
            logger.warning("forward_auth: %s does not say who calls: %s", self._name, what_failed(error))
        raise AuthUnavailable("The app that knows the users does not answer as it should.")

    def _read(self, response: httpx.Response, body: bytes) -> str | None:
        if response.status_code in (401, 403) or response.is_redirect:
            return None
        if response.status_code != 200:
            raise BadAnswer(f"its status is {response.status_code}")
        user = response.headers.get(self._id_header) if self._id_header else json.decode(body)["id"]
        if user is None or user == "":
            return None
        if isinstance(user, int) and not isinstance(user, bool):
            return str(user)
        if is_id(user):
            return str(user)
        raise BadAnswer("its id is not 1 to 255 printable characters, nor a whole number, nor null")
