"""Who is calling: the auth hook, the hooks that ship, and the check that a cookie is not used by a stranger's page."""

from __future__ import annotations

import asyncio
import hmac
import logging
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Hashable, Mapping
from dataclasses import replace
from functools import cache, partial
from hashlib import sha256
from inspect import isawaitable, iscoroutinefunction
from time import monotonic
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httpx
from quart import request, session
from werkzeug.exceptions import Forbidden, Unauthorized

from quart_openai_sse import _json
from quart_openai_sse.errors import (
    AuthenticationRequired,
    ConfigurationError,
    InvalidRequest,
    OpenAISSEError,
    OriginDenied,
    PermissionDenied,
)
from quart_openai_sse.principal import Principal

__all__ = [
    "AuthUnavailable",
    "Authenticate",
    "Principal",
    "allow_anonymous",
    "authenticate",
    "bearer_tokens",
    "first_of",
    "forward_auth",
    "on_behalf_of",
    "quart_auth_user",
    "session_user",
]

logger = logging.getLogger("quart_openai_sse")

T = TypeVar("T")

Authenticate = Callable[[], Awaitable[Principal | str | int | None]]
"""A coroutine function that looks at `quart.request` or `quart.session` and says who calls: a `Principal`, an id,
or `None` for nobody. It may raise an error of ours, or abort with 401 or 403."""

ClientFactory = Callable[[], Any]
"""Makes a client with httpx's API, for one request: with the proxies or the private authority that it takes."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_ANSWER = 1 << 20  # bytes
_MAX_LOOKUPS = 100  # at a time, of one hook on one event loop


class AuthUnavailable(OpenAISSEError):
    """Who calls can't be found out, because what knows it does not answer. Nobody is let in, or logged out."""

    status = 503
    code = "auth_unavailable"
    retry_after = 5
    user_message = "We can't check who you are at the moment. Please try again in a few seconds."


async def authenticate(hook: Authenticate, *, trusted_origins: Collection[str] = ()) -> Principal:
    """The caller of the current request.

    Raises `AuthenticationRequired` if *hook* knows nobody, and `OriginDenied` if a page of another origin uses
    a visitor's cookie in a method that changes something.
    """
    try:
        who = await hook()
    except Unauthorized:
        who = None
    except Forbidden as error:
        raise PermissionDenied(error.description or "") from error
    if who is None or who is False or who == "":
        raise AuthenticationRequired("No valid credentials were sent.")
    if isinstance(who, bool) or not isinstance(who, Principal | str | int):
        raise TypeError(f"An auth hook returns a Principal, an id or None, and not {type(who).__name__}.")
    principal = _principal(who)
    if principal.cookie and request.method not in _SAFE_METHODS:
        _check_origin(trusted_origins)
    return principal


def bearer_tokens(tokens: Mapping[str, str]) -> Authenticate:
    """Recognises `Authorization: Bearer …` by a mapping of tokens to principals' ids, in constant time."""
    known = [(sha256(token.encode()).digest(), owner) for token, owner in tokens.items() if token]

    async def hook() -> Principal | None:
        token = bearer_token()
        if token is None:
            return None
        given = sha256(token.encode()).digest()
        found = None
        for digest, owner in known:  # every one of them, so that time tells nothing
            if hmac.compare_digest(digest, given):
                found = owner
        return None if found is None else Principal(found, realm="token", cookie=False)

    return hook


def session_user(key: str = "_user_id", load: Callable[[Any], Any] | None = None) -> Authenticate:
    """Recognises the user id under *key* of the signed session cookie; the default is Flask-Login's.

    *load* is given the id and says whether there still is such a user: a `Principal`, an id, `True`; or `None` or
    `False`, for nobody. A coroutine function is awaited, any other function runs in a thread.
    """

    async def hook() -> Principal | None:
        user = session.get(key)
        if user in (None, ""):
            return None
        loaded = True if load is None else await _call(load, user)
        if loaded is None or loaded is False:
            return None
        if isinstance(loaded, Principal):
            return replace(loaded, cookie=True)
        if not isinstance(loaded, str | int):
            raise TypeError(f"load can't return {type(loaded).__name__}: only a Principal, an id, True, False or None.")
        return Principal(str(user if loaded is True else loaded), realm="session", cookie=True)

    return hook


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


def on_behalf_of(
    service: Authenticate, *, allowed: Collection[str] | Callable[[Principal], bool], realm: str = "session"
) -> Authenticate:
    """Lets a service that the hook *service* knows act for a user, whom it names in the header `X-On-Behalf-Of`.

    *allowed* holds the ids of such services, or is a function of their principal. The caller is then the user, as a
    principal of *realm*: the same as by the user's own cookie. The service's `models` hold there too. Without the
    right the header is refused (`PermissionDenied`; `AuthenticationRequired` without a service's credentials, whatever
    else is sent), without the header the service is itself. Whoever is known by a cookie never has the right.
    """
    if isinstance(allowed, str):
        raise ConfigurationError("on_behalf_of needs allowed= as a collection of ids, or a function.")
    has_right = allowed if callable(allowed) else lambda principal, ids=frozenset(allowed): principal.id in ids

    async def hook() -> Principal | str | int | None:
        who = await service()
        named = request.headers.getlist("X-On-Behalf-Of")
        if not named:
            return who
        if who is None:
            raise AuthenticationRequired("X-On-Behalf-Of needs the credentials of a service.")
        principal = _principal(who)
        if principal.cookie or principal.anonymous or not has_right(principal):
            raise PermissionDenied("You can't act on behalf of others.")
        return Principal(_named_user(named), realm=realm, cookie=False, models=principal.models)

    return hook


def quart_auth_user() -> Authenticate:
    """Recognises whoever is logged in by quart-auth (extra `auth`)."""
    from quart_auth import current_user

    async def hook() -> Principal | None:
        if not await current_user.is_authenticated:
            return None
        return Principal(str(current_user.auth_id), realm="quart-auth")

    return hook


def first_of(*hooks: Authenticate) -> Authenticate:
    """Asks one hook after the other; the first that knows the caller decides."""

    async def hook() -> Principal | str | int | None:
        for each in hooks:
            if (who := await each()) is not None:
                return who
        return None

    return hook


def allow_anonymous() -> Authenticate:
    """Lets everybody in, as one anonymous principal. Anyone who can reach the app can then spend your tokens."""

    async def hook() -> Principal:
        return Principal("", realm="anonymous", cookie=False, anonymous=True)

    return hook


def _principal(who: Principal | str | int) -> Principal:
    """The principal a hook means. Where it does not say what proved it, a cookie did, if there is one."""
    principal = who if isinstance(who, Principal) else Principal(str(who))
    return principal if principal.cookie is not None else replace(principal, cookie="Cookie" in request.headers)


def _check_origin(trusted: Collection[str]) -> None:
    origin = request.headers.get("Origin")
    if origin in trusted and origin is not None:
        return
    site = request.headers.get("Sec-Fetch-Site")
    if site in ("same-origin", "none"):
        return
    # Without either header it is no browser that runs somebody else's page.
    if site is not None or (origin is not None and _host(origin) != _host(f"{request.scheme}://{request.host}")):
        raise OriginDenied("A page of another origin can't use this cookie; see trusted_origins.")


def _host(origin: str) -> tuple[str | None, int | None]:
    """Host and port. The scheme is not compared: a proxy in front may have taken TLS off."""
    try:
        parts = urlsplit(origin)
        port = None if parts.port in (80, 443) else parts.port
        return parts.hostname, port
    except ValueError:
        return None, None


async def _call(function: Callable[[Any], Any], argument: Any) -> Any:
    if iscoroutinefunction(function):
        return await function(argument)
    result = await asyncio.to_thread(function, argument)
    return await result if isawaitable(result) else result


def _named_user(values: list[str]) -> str:
    """The one user that a header names, in UTF-8."""
    try:
        (value,) = values
        user = value.encode("latin-1").decode()
    except ValueError:
        user = ""
    if not is_id(user):
        raise InvalidRequest("X-On-Behalf-Of must be one id of 1 to 255 printable characters.", param="X-On-Behalf-Of")
    return user


# Asking somebody else --------------------------------------------------------------------------------------------


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
        user = response.headers.get(self._id_header) if self._id_header else _json.decode(body)["id"]
        if user is None or user == "":
            return None
        if isinstance(user, int) and not isinstance(user, bool):
            return str(user)
        if is_id(user):
            return str(user)
        raise BadAnswer("its id is not 1 to 255 printable characters, nor a whole number, nor null")


# What hooks share ------------------------------------------------------------------------------------------------


def bearer_token() -> str | None:
    """The current request's bearer token, if it has one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def is_id(value: Any) -> bool:
    """Whether it is a text that can be somebody's id: it goes into log lines."""
    return isinstance(value, str) and 1 <= len(value) <= 255 and value.isprintable()


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
