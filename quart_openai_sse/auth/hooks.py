"""The auth hooks that need no extra and have no file of their own."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Collection, Mapping
from hashlib import sha256
from inspect import isawaitable

from werkzeug.exceptions import HTTPException

from quart_openai_sse.auth.authentication import (
    Authenticate,
    ServiceRequired,
    ask,
    at_once,
    is_nobody,
    to_principal,
    waits,
)
from quart_openai_sse.auth.connection import current_connection
from quart_openai_sse.auth.ids import is_id, to_id
from quart_openai_sse.errors import (
    ConfigurationError,
    InvalidRequest,
    OpenAISSEError,
    PermissionDenied,
)
from quart_openai_sse.principal import Principal

__all__ = [
    "Authenticate",
    "Principal",
    "allow_anonymous",
    "bearer_tokens",
    "first_of",
    "on_behalf_of",
    "quart_auth_user",
]


def bearer_tokens(tokens: Mapping[str, str]) -> Authenticate:
    """Returns an auth hook that recognises `Authorization: Bearer …`: *tokens* maps tokens to principals' ids.

    Tokens are compared in constant time, and only their digests are kept in memory. Raises `ConfigurationError` for an
    id that is neither a text of 1 to 255 printable characters nor a whole number.
    """
    known = [
        (sha256(token.encode()).digest(), Principal(_token_owner(owner), realm="token", cookie=False))
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


def _token_owner(owner: str) -> str:
    if (owner_id := to_id(owner)) is None:
        raise ConfigurationError("bearer_tokens: a principal's id must be a text of 1 to 255 printable characters.")
    return owner_id


def bearer_token() -> str | None:
    """The bearer token of the current request or websocket, or `None`."""
    scheme, _, token = current_connection().headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def on_behalf_of(
    service: Authenticate,
    *,
    allowed: Collection[str] | Callable[[Principal], bool | Awaitable[bool]],
    realm: str = "session",
) -> Authenticate:
    """Returns an auth hook that lets a service act for a user, whom it names in the header `X-On-Behalf-Of`.

    The hook *service* recognises the service. *allowed* holds the ids of the services that have the right, or is a
    function of the service's principal, `def` or `async def`, which runs on the event loop. The principal is then the
    user in *realm*, as with the user's own cookie, and keeps the service's `models`. Without the header the principal
    is the service itself.

    The header is refused with `PermissionDenied` if the service does not have the right, is anonymous or was
    recognised by a cookie, and with `AuthenticationRequired` if *service* recognises no service; in `first_of`, no
    further hook is asked then. Raises `ConfigurationError` if *allowed* is a text.
    """
    if isinstance(allowed, str):
        raise ConfigurationError("on_behalf_of: allowed must be a collection of ids or a function.")
    is_allowed = allowed if callable(allowed) else lambda principal, ids=frozenset(allowed): principal.id in ids

    async def on_behalf_of_hook() -> Principal | str | int | None:
        headers = current_connection().headers
        named = headers.getlist("X-On-Behalf-Of")
        if not named:
            return await ask(service)
        try:
            caller = await ask(service)
        except (HTTPException, OpenAISSEError) as error:
            if not is_nobody(error):
                raise
            caller = None
        if caller is None:
            raise ServiceRequired("X-On-Behalf-Of needs the credentials of a service.")
        principal = to_principal(caller)
        by_cookie = principal.cookie and "Cookie" in headers  # a service may use Basic, which counts as a cookie too
        if by_cookie or principal.anonymous or not await _decide(is_allowed, principal):
            raise PermissionDenied("You are not allowed to act on behalf of another user.")
        return Principal(_named_user(named), realm=realm, cookie=False, models=principal.models)

    return on_behalf_of_hook


async def _decide(is_allowed: Callable[[Principal], bool | Awaitable[bool]], principal: Principal) -> bool:
    allowed = is_allowed(principal)
    return await allowed if isawaitable(allowed) else allowed


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
    """Returns an auth hook that asks *hooks* in turn and returns the first caller that one of them recognises.

    A hook recognises no caller if it returns `None`, `False`, `""` or an invalid id, aborts with 401, or raises
    `AuthenticationRequired`; if no hook does, the first `AuthenticationRequired` is raised. Any other error ends the
    search: a hook that aborts with 403 or raises `PermissionDenied` has recognised the caller.
    """

    async def first_of_hook() -> Principal | str | int | None:
        refusal: OpenAISSEError | None = None
        for each in hooks:
            try:
                if (caller := await ask(each)) is not None:
                    return caller
            except HTTPException as error:
                if not is_nobody(error):
                    raise
            except OpenAISSEError as error:
                if not is_nobody(error):
                    raise
                refusal = refusal or error
        if refusal is not None:
            raise refusal
        return None

    return first_of_hook if any(map(waits, hooks)) else at_once(first_of_hook)


def allow_anonymous() -> Authenticate:
    """Returns an auth hook that accepts every request, as one anonymous principal.

    Anyone who can reach the app can then spend your tokens.
    """

    async def allow_anonymous_hook() -> Principal:
        return Principal("", realm="anonymous", cookie=False, anonymous=True)

    return at_once(allow_anonymous_hook)
