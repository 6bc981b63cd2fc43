"""Who is calling: the auth hook, the hooks that ship, and the check that a cookie is not used by a stranger's page."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from inspect import isawaitable, iscoroutinefunction
from typing import Any

from quart import request, session
from werkzeug.exceptions import Forbidden, Unauthorized

from quart_openai_sse.auth.origin import SAFE_METHODS, check_origin
from quart_openai_sse.errors import AuthenticationRequired, ConfigurationError, InvalidRequest, PermissionDenied
from quart_openai_sse.principal import Principal, is_id

__all__ = [
    "Authenticate",
    "Principal",
    "allow_anonymous",
    "authenticate",
    "bearer_tokens",
    "first_of",
    "on_behalf_of",
    "quart_auth_user",
    "session_user",
]

Authenticate = Callable[[], Awaitable[Principal | str | int | None]]
"""A coroutine function that looks at `quart.request` or `quart.session` and says who calls: a `Principal`, an id,
or `None` for nobody. It may raise an error of ours, or abort with 401 or 403."""


async def authenticate(hook: Authenticate, *, trusted_origins: Collection[str] = ()) -> Principal:
    """The caller of the current request.

    Raises `AuthenticationRequired` if *hook* knows nobody, and `OriginDenied` if a page of another origin uses
    a visitor's cookie in a method that changes something.
    """
    try:
        who = _somebody(await hook())
    except Unauthorized:
        who = None
    except Forbidden as error:
        raise PermissionDenied(error.description or "") from error
    if who is None:
        raise AuthenticationRequired("No valid credentials were sent.")
    if isinstance(who, bool) or not isinstance(who, Principal | str | int):
        raise TypeError(f"An auth hook returns a Principal, an id or None, and not {type(who).__name__}.")
    principal = _principal(who)
    if principal.cookie and request.method not in SAFE_METHODS:
        check_origin(trusted_origins)
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


def bearer_token() -> str | None:
    """The current request's bearer token, if it has one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


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
        who = _somebody(await service())
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


def _somebody(who: Principal | str | int | None) -> Principal | str | int | None:
    """What a hook said, and `None` for all that hooks say of nobody."""
    return None if who is False or who == "" else who


def _principal(who: Principal | str | int) -> Principal:
    """The principal a hook means. Where it does not say what proved it, a cookie did, if there is one."""
    principal = who if isinstance(who, Principal) else Principal(str(who))
    return principal if principal.cookie is not None else replace(principal, cookie="Cookie" in request.headers)


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
