"""The auth hooks that need no extra."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256
from inspect import isawaitable
from typing import Any

from quart import session

from quart_openai_sse.auth.authentication import Authenticate, ask, at_once, current_question, to_principal, waits
from quart_openai_sse.auth.connection import current_connection
from quart_openai_sse.errors import (
    AuthenticationRequired,
    ConfigurationError,
    InvalidRequest,
    PermissionDenied,
)
from quart_openai_sse.functions import runs_on_loop
from quart_openai_sse.principal import Principal, is_id

__all__ = [
    "Authenticate",
    "Principal",
    "allow_anonymous",
    "bearer_tokens",
    "first_of",
    "on_behalf_of",
    "quart_auth_user",
    "session_user",
]


def bearer_tokens(tokens: Mapping[str, str]) -> Authenticate:
    """Returns an auth hook that recognises `Authorization: Bearer …`: *tokens* maps tokens to principals' ids.

    Tokens are compared in constant time, and only their digests are kept in memory.
    """
    known = [
        (sha256(token.encode()).digest(), Principal(owner, realm="token", cookie=False))
        for token, owner in tokens.items()
        if token
    ]

    async def bearer_tokens_hook() -> Principal | None:
        token = bearer_token()
        if token is None:
            return None
        given = sha256(token.encode()).digest()
        found = None
        for digest, principal in known:  # without a break, so that the time does not depend on the token
            if hmac.compare_digest(digest, given):
                found = principal
        return found

    return at_once(bearer_tokens_hook)


def bearer_token() -> str | None:
    """The bearer token of the current request or websocket, or `None`."""
    scheme, _, token = current_connection().headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def session_user(key: str = "_user_id", load: Callable[[Any], Any] | None = None) -> Authenticate:
    """Returns an auth hook that recognises the user id under *key* of the signed session; the default is Flask-Login's.

    *load* gets the id and returns `True`, an id or a `Principal` if the user exists, `None` or `False` otherwise. If
    it is a coroutine function it is awaited; any other function runs in a thread.
    """

    async def session_user_hook() -> Principal | None:
        user = session.get(key)
        if user in (None, ""):
            return None
        loaded = True if load is None else await _call_load(load, user)
        if loaded is None or loaded is False:
            return None
        if isinstance(loaded, Principal):
            return replace(loaded, cookie=True)
        if not isinstance(loaded, str | int):
            raise TypeError(f"load must return a Principal, an id, True, False or None, not {type(loaded).__name__}.")
        return Principal(str(user if loaded is True else loaded), realm="session", cookie=True)

    return at_once(session_user_hook) if load is None else session_user_hook


async def _call_load(load: Callable[[Any], Any], user: Any) -> Any:
    question = current_question.get()
    with nullcontext() if question is None else question.running(load):
        if runs_on_loop(load):
            return await load(user)
        in_thread = asyncio.to_thread if question is None else question.calls.run_in_thread
        result = await in_thread(load, user)
        return await result if isawaitable(result) else result


def on_behalf_of(
    service: Authenticate, *, allowed: Collection[str] | Callable[[Principal], bool], realm: str = "session"
) -> Authenticate:
    """Returns an auth hook that lets a service act for a user, whom it names in the header `X-On-Behalf-Of`.

    The hook *service* recognises the service. *allowed* holds the ids of the services that have the right, or is a
    function of the service's principal. The principal is then the user in *realm*, as with the user's own cookie, and
    keeps the service's `models`. Without the header the principal is the service itself.

    The header is refused with `PermissionDenied` if the service does not have the right, is anonymous or was
    recognised by a cookie, and with `AuthenticationRequired` if *service* recognises no service. Raises
    `ConfigurationError` if *allowed* is a text.
    """
    if isinstance(allowed, str):
        raise ConfigurationError("on_behalf_of: allowed must be a collection of ids or a function.")
    is_allowed = allowed if callable(allowed) else lambda principal, ids=frozenset(allowed): principal.id in ids

    async def on_behalf_of_hook() -> Principal | str | int | None:
        caller = await ask(service)
        named = current_connection().headers.getlist("X-On-Behalf-Of")
        if not named:
            return caller
        if caller is None:
            raise AuthenticationRequired("X-On-Behalf-Of needs the credentials of a service.")
        principal = to_principal(caller)
        if principal.cookie or principal.anonymous or not is_allowed(principal):
            raise PermissionDenied("You are not allowed to act on behalf of another user.")
        return Principal(_named_user(named), realm=realm, cookie=False, models=principal.models)

    return on_behalf_of_hook


def _named_user(values: list[str]) -> str:
    """The user's id in the values of the header, which is UTF-8. Raises `InvalidRequest` unless it is exactly one."""
    try:
        (value,) = values
        user = value.encode("latin-1").decode()
    except ValueError:
        user = ""
    if not is_id(user):
        raise InvalidRequest("X-On-Behalf-Of must be one id of 1 to 255 printable characters.", param="X-On-Behalf-Of")
    return user


def quart_auth_user() -> Authenticate:
    """Returns an auth hook that recognises the user logged in with quart-auth (extra `auth`)."""
    from quart_auth import current_user

    async def quart_auth_user_hook() -> Principal | None:
        if not await current_user.is_authenticated:
            return None
        return Principal(str(current_user.auth_id), realm="quart-auth")

    return quart_auth_user_hook


def first_of(*hooks: Authenticate) -> Authenticate:
    """Returns an auth hook that asks *hooks* in turn and returns the first caller that one of them recognises."""

    async def first_of_hook() -> Principal | str | int | None:
        for each in hooks:
            if (caller := await ask(each)) is not None:
                return caller
        return None

    return first_of_hook if any(map(waits, hooks)) else at_once(first_of_hook)


def allow_anonymous() -> Authenticate:
    """Returns an auth hook that accepts every request, as one anonymous principal.

    Anyone who can reach the app can then spend your tokens.
    """

    async def allow_anonymous_hook() -> Principal:
        return Principal("", realm="anonymous", cookie=False, anonymous=True)

    return at_once(allow_anonymous_hook)
