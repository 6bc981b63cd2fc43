"""The session cookie of a Flask app beside ours: read, and left to that app to write."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Protocol

__all__ = ["share_session"]

_READ_WITH = ("SECRET_KEY", "SECRET_KEY_FALLBACKS", "SESSION_COOKIE_NAME", "PERMANENT_SESSION_LIFETIME")


class Configured(Protocol):
    """A Flask or a Quart app, as far as it matters here."""

    @property
    def config(self) -> MutableMapping[str, Any]:
        """Its configuration."""
        ...


def share_session(flask_app: Configured, quart_app: Configured) -> None:
    """Lets *quart_app* recognise the session cookies of *flask_app*, for `session_user`.

    It takes over what they are read with: keys, name, lifetime. Nor does it send them again, as apps do with permanent
    sessions: a response that ends after a log-out would bring the old session back.
    """
    quart_app.config.update({key: flask_app.config[key] for key in _READ_WITH if key in flask_app.config})
    quart_app.config["SESSION_REFRESH_EACH_REQUEST"] = False
