"""The auth hook for users of a signed session, and the reasons for which it recognises no user."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

from quart import current_app, session
from quart.sessions import SecureCookieSessionInterface

from quart_openai_sse.auth.authentication import Authenticate, at_once, call
from quart_openai_sse.auth.connection import current_connection
from quart_openai_sse.auth.ids import to_id
from quart_openai_sse.principal import Principal

__all__ = ["session_user"]

logger = logging.getLogger("quart_openai_sse")


def session_user(key: str = "_user_id", load: Callable[[Any], Any] | None = None) -> Authenticate:
    """Returns an auth hook that recognises the user id under *key* of the signed session; the default is Flask-Login's.

    An id is a text of 1 to 255 printable characters, a whole number or a UUID. Without *load* no user is
    recognised for any other value in the session.

    *load* gets the value in the session and returns `True` if it is the id of a user who exists, or else an id or a
    `Principal`; `None`, `False` or an invalid id if there is no such user. If it is a coroutine function it is awaited;
    any other function runs in a thread. An exception that it raises is a 500. A `load` that returns anything else, or
    `True` for a value of another type than an id, is a `TypeError`.

    A log line at `DEBUG` says why no user was recognised.
    """

    async def session_user_hook() -> Principal | None:
        found = session.get(key)
        if found is None or found is False or found == "":
            _log_nobody(lambda: _why_there_is_no_value(key))
            return None
        user = found if load is None else await call(load, found)
        if user is None or user is False:
            _log_nobody(lambda: f"load returned {user}")
            return None
        if isinstance(user, Principal):
            return replace(user, cookie=True)
        if load is not None:
            user = _loaded(user, found)
        if (user_id := to_id(user)) is None:
            _log_nobody(lambda: _why_it_is_no_id(repr(key) if user is found else "what load returned", user))
            return None
        return Principal(user_id, realm="session", cookie=True)

    return at_once(session_user_hook) if load is None else session_user_hook


def _loaded(loaded: Any, found: Any) -> Any:
    """What *load* returned, or what it was given if that is `True`. Raises `TypeError` unless it can be an id."""
    if loaded is not True and not isinstance(loaded, str | int | UUID):
        raise TypeError(f"load must return a Principal, an id, True, False or None, not {type(loaded).__name__}.")
    if loaded is True and (found is True or not isinstance(found, str | int | UUID)):
        raise TypeError(
            f"load returned True, but the session's value is not an id ({type(found).__name__}): "
            "load must return an id or a Principal."
        )
    return found if loaded is True else loaded


def _log_nobody(why: Callable[[], str]) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("session_user: no user was recognised: %s", why())


# No reason quotes a value of the session or the cookie.


def _why_there_is_no_value(key: str) -> str:
    interface = current_app.session_interface
    if interface.is_null_session(session):
        return "the app has no sessions, because it has no SECRET_KEY"
    name = interface.get_cookie_name(current_app)
    cookie = current_connection().cookies.get(name)
    if cookie is None:
        return f"the request has no cookie {name!r}"
    if not session:
        return f"the cookie {name!r} {_why_there_is_no_session(cookie)}"
    return f"the session's {key!r} is None, False or empty" if key in session else f"the session has no {key!r}"


def _why_there_is_no_session(cookie: str) -> str:
    interface = current_app.session_interface
    if isinstance(interface, SecureCookieSessionInterface) and (
        serializer := interface.get_signing_serializer(current_app)
    ):
        try:
            if serializer.loads(cookie):  # whatever its age
                return "has expired"
        except Exception:
            return (
                "cannot be read: it was signed with another SECRET_KEY or salt, "
                "or it is only the key of a session on a server"
            )
    return "has an empty session"


def _why_it_is_no_id(what: str, value: Any) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool):
        return f"{what} is not a text of 1 to 255 printable characters"
    return f"{what} is not an id, but of the type {type(value).__name__}"
