"""`share_session`: the Quart app reads a Flask app's session cookie and never writes it."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Protocol

__all__ = ["share_session"]

_COPIED_KEYS = ("SECRET_KEY", "SECRET_KEY_FALLBACKS", "SESSION_COOKIE_NAME", "PERMANENT_SESSION_LIFETIME")


class Configured(Protocol):
    """A Flask or Quart app: only its configuration is used."""

    @property
    def config(self) -> MutableMapping[str, Any]:
        """The app's configuration."""
        ...


def share_session(flask_app: Configured, quart_app: Configured) -> None:
    """Lets *quart_app* read the session cookies of *flask_app*, for `session_user`.

    Copies the secret keys, the cookie's name and the sessions' lifetime to *quart_app*, and switches off the refresh
    of permanent sessions there: a response that ends after a logout would restore the old session.
    """
    quart_app.config.update({key: flask_app.config[key] for key in _COPIED_KEYS if key in flask_app.config})
    quart_app.config["SESSION_REFRESH_EACH_REQUEST"] = False
