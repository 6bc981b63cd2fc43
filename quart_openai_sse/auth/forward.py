"""Forward auth: the hook that asks another app which user the request's cookies belong to."""

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

from quart_openai_sse.auth.authentication import Authenticate
from quart_openai_sse.auth.connection import current_connection
from quart_openai_sse.auth.lookups import (
    BadAnswer,
    ClientFactory,
    PerLoop,
    SingleFlight,
    check_address,
    describe_failure,
    fetch,
)
from quart_openai_sse.errors import AuthUnavailable
from quart_openai_sse.principal import Principal, is_id
from quart_openai_sse.protocol import json

__all__ = ["forward_auth"]

logger = logging.getLogger("quart_openai_sse")

_MAX_LOOKUPS = 100  # at the same time, for one hook on one event loop


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
    """Returns an auth hook that asks another app for the user, for sessions that are stored on that app's server.

    The hook sends a GET to *url* with the request's cookies and the headers named by *forward*; the default headers
    are those that Flask-Login's session protection checks. The app answers 200 with `{"id": …}`, or with the id in
    the header *id_header*. An id of `null`, a redirect, 401 or 403 means that no user is logged in. Any other answer,
    or none within *timeout* seconds, raises `AuthUnavailable` (503).

    An id is cached for *ttl* seconds, the absence of a user for *negative_ttl* seconds, for the *max_entries* sets of
    cookies used last. *client* creates the HTTP client. Raises `ConfigurationError` for an invalid *url*.
    """
    check_address(url, "forward_auth")
    names = {name.title() for name in forward} - {"Cookie"}
    lookups = PerLoop(
        lambda: _UserLookup(
            partial(fetch, url, client=client),
            name=urlsplit(url).netloc,
            id_header=id_header,
            timeout=timeout,
            ttl=ttl,
            negative_ttl=negative_ttl,
            max_entries=max_entries,
        )
    )

    async def forward_auth_hook() -> Principal | None:
        received = current_connection().headers
        cookies = "; ".join(received.getlist("Cookie"))
        if not cookies:
            return None
        headers = {"Cookie": cookies, "User-Agent": ""}  # an empty User-Agent, or httpx would send its own
        headers |= {name: ", ".join(received.getlist(name)) for name in names if name in received}
        user = await lookups.get().user({name: value.encode("latin-1") for name, value in headers.items()})
        return None if user is None else Principal(user, realm=realm, cookie=True)

    return forward_auth_hook


class _UserLookup:
    """Asks the other app for users and caches its answers, on one event loop; equal lookups share one request."""

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
        self._cache: OrderedDict[bytes, tuple[float, str | None]] = OrderedDict()
        """By digest of the headers: when the entry expires, and the user's id; the entry used last comes last."""
        self._flights: SingleFlight[str | None] = SingleFlight()
        self._slots = asyncio.Semaphore(_MAX_LOOKUPS)

    async def user(self, headers: Mapping[str, bytes]) -> str | None:
        """The id of the user that *headers* belong to, or `None` if no user is logged in. Raises `AuthUnavailable`."""
        parts = sorted((name.encode(), value) for name, value in headers.items())
        # The key is a digest because a cookie is a credential.
        key = sha256(b"".join(b"%b:%d:%b" % (name, len(value), value) for name, value in parts)).digest()
        expires, user = self._cache.get(key, (0.0, None))
        if monotonic() < expires:
            self._cache.move_to_end(key)
            return user
        return await self._flights.run(key, lambda: self._look_up(key, headers))

    async def _look_up(self, key: bytes, headers: Mapping[str, bytes]) -> str | None:
        begun = monotonic()  # before the request: a slow answer is not cached for longer
        user = await self._ask(headers)
        self._cache[key] = (begun + (self._negative_ttl if user is None else self._ttl), user)
        self._cache.move_to_end(key)
        while len(self._cache) > self._max_entries:
            self._cache.popitem(last=False)
        return user

    async def _ask(self, headers: Mapping[str, bytes]) -> str | None:
        try:
            async with asyncio.timeout(self._timeout), self._slots:
                return self._read(*await self._get(headers=headers))
        except Exception as error:
            logger.warning("forward_auth: the user lookup at %s failed: %s", self._name, describe_failure(error))
        raise AuthUnavailable("The user could not be looked up: the login server did not return a valid answer.")

    def _read(self, response: httpx.Response, body: bytes) -> str | None:
        if response.status_code in (401, 403) or response.is_redirect:
            return None
        if response.status_code != 200:
            raise BadAnswer(f"the status is {response.status_code}")
        user = response.headers.get(self._id_header) if self._id_header else json.decode(body)["id"]
        if user is None or user == "":
            return None
        if isinstance(user, int) and not isinstance(user, bool):
            return str(user)
        if is_id(user):
            return str(user)
        raise BadAnswer("the id must be 1 to 255 printable characters, a whole number or null")
