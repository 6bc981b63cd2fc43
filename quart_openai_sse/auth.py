"""Who is calling: the auth hook, the hooks that ship, and the check that a cookie is not used by a stranger's page."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from urllib.parse import urlsplit

from quart import request, session
from werkzeug.exceptions import Forbidden, Unauthorized

from quart_openai_sse.errors import AuthenticationRequired, OriginDenied, PermissionDenied
from quart_openai_sse.principal import Principal

__all__ = [
    "Authenticate",
    "Principal",
    "allow_anonymous",
    "authenticate",
    "bearer_tokens",
    "first_of",
    "quart_auth_user",
    "session_user",
]

Authenticate = Callable[[], Awaitable[Principal | str | int | None]]
"""A coroutine function that looks at `quart.request` or `quart.session` and says who calls: a `Principal`, an id,
or `None` for nobody. It may raise an error of ours, or abort with 401 or 403."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


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
    if who is None:
        raise AuthenticationRequired("No valid credentials were sent.")
    principal = who if isinstance(who, Principal) else Principal(str(who))
    if principal.cookie is None:
        principal = replace(principal, cookie="Cookie" in request.headers)
    if principal.cookie and request.method not in _SAFE_METHODS:
        _check_origin(trusted_origins)
    return principal


def bearer_tokens(tokens: Mapping[str, str]) -> Authenticate:
    """Recognises `Authorization: Bearer …` by a mapping of tokens to principals' ids, in constant time."""
    known = [(sha256(token.encode()).digest(), owner) for token, owner in tokens.items() if token]

    async def hook() -> Principal | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        given = sha256(token.strip().encode()).digest()
        found = None
        for digest, owner in known:  # every one of them, so that time tells nothing
            if hmac.compare_digest(digest, given):
                found = owner
        return None if found is None else Principal(found, realm="token", cookie=False)

    return hook


def session_user(key: str = "_user_id") -> Authenticate:
    """Recognises the user id under *key* of the signed session cookie; the default is Flask-Login's."""

    async def hook() -> Principal | None:
        user = session.get(key)
        return None if user in (None, "") else Principal(str(user), realm="session", cookie=True)

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
