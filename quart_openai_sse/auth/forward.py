"""Forward auth: the hook that asks another app which user the request's credentials belong to."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from hashlib import sha256
from time import monotonic
from urllib.parse import urlsplit

import httpx

from quart_openai_sse.auth.authentication import Authenticate
from quart_openai_sse.auth.connection import current_connection, has_ambient_credentials
from quart_openai_sse.auth.ids import to_id
from quart_openai_sse.auth.lookups import (
    BadAnswer,
    ClientFactory,
    PerLoop,
    SingleFlight,
    check_address,
    describe_failure,
    fetch,
    read_member,
)
from quart_openai_sse.errors import AuthUnavailable, ConfigurationError
from quart_openai_sse.principal import Principal

__all__ = ["forward_auth"]

logger = logging.getLogger("quart_openai_sse")

_MAX_LOOKUPS = 100  # at the same time, for one hook on one event loop

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2

_OF_ONE_CONNECTION = frozenset(
    ("Connection", "Content-Length", "Expect", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade")
)
"""Headers that frame a message: in a request without the caller's body they would be wrong."""

_DESCRIPTIONS = re.compile(
    r"Accept(-.+)?|Baggage|Cache-Control|Content-.+|Date|Dnt|Forwarded|Host|Origin|Pragma|Priority|Range|Referer"
    r"|Save-Data|Sec-(Ch|Fetch)-.+|Sec-Gpc|Traceparent|Tracestate|User-Agent|Via"
    r"|(Cf-Connecting|Fastly-Client|True-Client|X-Client|X-Cluster-Client|X-Original|X-Real)-Ip"
    r"|X-Forwarded-(By|For|Host|Method|Path|Port|Prefix|Proto|Scheme|Server|Ssl|Uri)"
    r"|X-(Amzn-Trace|Correlation|Request|Trace)-Id|X-B3-.+|X-Requested-With"
)
"""Headers that say something about a request or its client, and nothing that could prove who the user is."""


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
    """Returns an auth hook that asks another app for the user, for logins that only that app can check.

    The hook sends a GET to *url* with the request's cookies and the headers named by *forward*; the default headers
    are those that Flask-Login's session protection checks. If the request has no credential among them, no user is
    recognised, and the app is not asked. Cookies are credentials, and so is every header in *forward* that is not known
    to only describe the request or its client, as `User-Agent`, `X-Forwarded-For` and `Accept-Language` do.

    The app answers 200 with `{"id": …}`, or with the id in the header *id_header*. An id of `null`, a redirect, 401 or
    403, and an answer without the header *id_header* mean that no user is logged in. Any other answer, or none within
    *timeout* seconds, raises `AuthUnavailable` (503), and a warning says what the answer lacks.

    The origin of the request is checked, as for any cookie, if it has a cookie or credentials of HTTP authentication
    that a browser sends by itself (Basic, Digest, Negotiate, NTLM).

    An id is cached for *ttl* seconds, the absence of a user for *negative_ttl* seconds, for the *max_entries* sets of
    credentials used last. *client* creates the HTTP client. Raises `ConfigurationError` for an invalid *url*, and for
    a *forward* that is not a collection of names of headers, or names one that belongs to a connection.
    """
    check_address(url, "forward_auth")
    names = _checked_names(forward)
    credentials = [name for name in names if not _DESCRIPTIONS.fullmatch(name)]
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
        if not cookies and not any(map(received.get, credentials)):
            logger.debug(
                "forward_auth: no user was recognised: the request has no %s", " or ".join(["Cookie", *credentials])
            )
            return None
        headers = {"Cookie": cookies} if cookies else {}
        headers["User-Agent"] = ""  # or httpx would send its own
        headers |= {name: ", ".join(received.getlist(name)) for name in names if name in received}
        user = await lookups.get().user({name: value.encode("latin-1") for name, value in headers.items()})
        # With a cookie beside another credential, either may have been the proof.
        return None if user is None else Principal(user, realm=realm, cookie=has_ambient_credentials())

    return forward_auth_hook


def _checked_names(forward: Collection[str]) -> list[str]:
    """The headers to forward beside the cookies."""
    if isinstance(forward, str):
        raise ConfigurationError(f"forward_auth: forward must be a collection of names: write forward=({forward!r},).")
    names = sorted({name.title() for name in forward} - {"Cookie"})
    for name in names:
        if not _NAME.fullmatch(name) or name in _OF_ONE_CONNECTION:
            raise ConfigurationError(f"forward_auth: the header {name!r} cannot be forwarded.")
    return names


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
            self._log_nobody(f"the status is {response.status_code}")
            return None
        if response.status_code != 200:
            raise BadAnswer(f"the status is {response.status_code}")
        user = self._read_header(response) if self._id_header else read_member(body, "id")
        if user is None and self._id_header:
            self._log_nobody(f"the header {self._id_header} is missing")
            return None
        if user is None or user == "":
            self._log_nobody("the id is null or empty")
            return None
        if (user_id := to_id(user)) is None:
            kind = "" if isinstance(user, str | int) and not isinstance(user, bool) else f", not {type(user).__name__}"
            raise BadAnswer(f"the id must be 1 to 255 printable characters, a whole number or null{kind}")
        return user_id

    def _read_header(self, response: httpx.Response) -> str | None:
        values = response.headers.get_list(self._id_header)
        if len(values) > 1:
            raise BadAnswer(f"the answer has {len(values)} headers {self._id_header}")
        return values[0] if values else None

    def _log_nobody(self, why: str) -> None:
        logger.debug("forward_auth: %s recognised no user: %s", self._name, why)
