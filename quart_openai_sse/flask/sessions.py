"""`share_session`: the Quart app reads a Flask app's session cookie and never writes it."""

from __future__ import annotations

import logging
from collections.abc import Collection, MutableMapping
from contextlib import suppress
from typing import Any, Protocol

from quart import Quart
from quart.sessions import SecureCookieSessionInterface

from quart_openai_sse.errors import ConfigurationError

__all__ = ["share_session"]

logger = logging.getLogger("quart_openai_sse")

_COPIED_KEYS = ("SECRET_KEY", "SECRET_KEY_FALLBACKS", "PERMANENT_SESSION_LIFETIME")

_HOW = "See 'A session on another app's server' in docs/how-to/authenticate.md."


class Configured(Protocol):
    """A Flask app: its configuration and its session interface are used."""

    session_interface: Any

    @property
    def config(self) -> MutableMapping[str, Any]:
        """The app's configuration."""
        ...


def share_session(flask_app: Configured, quart_app: Quart, *, prefix: str | Collection[str] = "/v1") -> None:
    """Lets *quart_app* read the session cookies of *flask_app*, for `session_user`.

    Copies the secret keys, the cookie's name and the sessions' lifetime to *quart_app*, and switches off the refresh
    of permanent sessions there: a response that ends after a logout would restore the old session.

    Raises `ConfigurationError` if *quart_app* could not read the cookies: if *flask_app* has no `SECRET_KEY` or keeps
    its sessions elsewhere than in Flask's signed cookie, or if the two apps sign it differently. The same is checked
    when the server starts, because an extension may replace the session interface later.

    *prefix* is one path or several, below which browsers request the routes of *quart_app*. A warning is logged if
    `SESSION_COOKIE_PATH` or `APPLICATION_ROOT` of *flask_app* keeps browsers from sending the cookie there.
    """
    quart_app.config.update({key: flask_app.config[key] for key in _COPIED_KEYS if key in flask_app.config})
    quart_app.config["SESSION_REFRESH_EACH_REQUEST"] = False
    if _is_signed_cookie(flask_app.session_interface):  # which may name the cookie itself
        quart_app.config["SESSION_COOKIE_NAME"] = flask_app.session_interface.get_cookie_name(flask_app)
    _check_readable(flask_app, quart_app)
    _warn_of_path(flask_app, [prefix] if isinstance(prefix, str) else prefix)

    async def check_again() -> None:
        _check_readable(flask_app, quart_app)

    quart_app.before_serving(check_again)


def _check_readable(flask_app: Configured, quart_app: Quart) -> None:
    flasks, quarts = flask_app.session_interface, quart_app.session_interface
    if not _is_signed_cookie(flasks):
        raise ConfigurationError(
            f"share_session: the Flask app's sessions are not in Flask's signed cookie. {_class_of(flasks)} keeps "
            f"them, and Quart cannot read them. Use forward_auth, which asks the Flask app who the user is. {_HOW}"
        )
    if not isinstance(quarts, SecureCookieSessionInterface):
        raise ConfigurationError(
            f"share_session: the Quart app's session interface is {_class_of(quarts)}, which does not read Flask's "
            "signed cookie. Leave Quart's own interface in place."
        )
    if not flask_app.config.get("SECRET_KEY"):
        raise ConfigurationError("share_session: the Flask app has no SECRET_KEY. Set it before share_session.")
    if different := _different(flask_app, quart_app):
        raise ConfigurationError(
            f"share_session: Quart cannot read the session cookie of {_class_of(flasks)}, because {different} of the "
            "two apps differ. Give the Quart app a session interface with the same values, or use forward_auth. "
            f"{_HOW}"
        )


def _is_signed_cookie(interface: object) -> bool:
    """Whether it derives from Flask's own session interface, which is not imported here, or from Quart's."""
    return any(
        cls.__module__ in ("flask.sessions", "quart.sessions") and cls.__name__ == SecureCookieSessionInterface.__name__
        for cls in type(interface).__mro__
    )


def _different(flask_app: Configured, quart_app: Quart) -> str:
    """What keeps *quart_app* from reading a cookie of *flask_app*, for a sentence; `""` if it can."""
    flasks, quarts = flask_app.session_interface, quart_app.session_interface
    compared = {
        "SECRET_KEY": (flask_app.config["SECRET_KEY"], quart_app.config["SECRET_KEY"]),
        "the cookie's name": (flasks.get_cookie_name(flask_app), quarts.get_cookie_name(quart_app)),
        "salt": (flasks.salt, quarts.salt),
        "key_derivation": (flasks.key_derivation, quarts.key_derivation),
        "digest_method": (flasks.digest_method(b"").digest(), quarts.digest_method(b"").digest()),
        "serializer": (type(flasks.serializer), type(quarts.serializer)),
    }
    if different := [name for name, (one, other) in compared.items() if one != other]:
        return "the values of " + ", ".join(different)
    session = {"_user_id": "1"}
    cookie = flasks.get_signing_serializer(flask_app).dumps(session)
    reading: Any = quarts.get_signing_serializer(quart_app)
    with suppress(Exception):  # itsdangerous' errors, and those of an interface of the app's own
        if reading.loads(cookie) == session:
            return ""
    return "the results of get_signing_serializer"


def _warn_of_path(flask_app: Configured, prefixes: Collection[str]) -> None:
    key = "SESSION_COOKIE_PATH" if flask_app.config.get("SESSION_COOKIE_PATH") else "APPLICATION_ROOT"
    path = flask_app.session_interface.get_cookie_path(flask_app) or "/"
    if path != (flask_app.config.get(key) or "/"):
        key = f"get_cookie_path of {_class_of(flask_app.session_interface)}"
    if hidden := sorted(prefix or "/" for prefix in prefixes if not _is_sent(path, prefix)):
        logger.warning(
            "share_session: %s is %r, so browsers do not send the Flask app's session cookie to %s, and its users "
            "are not recognised there. Set SESSION_COOKIE_PATH to '/', or pass the path of the Quart app's routes as "
            "prefix=.",
            key,
            path,
            " and ".join(hidden),
        )


def _is_sent(cookie_path: str, path: str) -> bool:
    """Whether browsers send a cookie with *cookie_path* to *path* (RFC 6265, 5.1.4), and to what is below it."""
    return f"{path}/".startswith(cookie_path if cookie_path.endswith("/") else f"{cookie_path}/")


def _class_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
