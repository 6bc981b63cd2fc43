"""Checks of the WSGI app that `mount` is given, and warnings of what `mount` cannot serve."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import suppress
from inspect import iscoroutinefunction, signature, unwrap
from typing import Any
from urllib.parse import quote

from quart import Quart
from werkzeug.routing import Map

from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.functions import called_function

logger = logging.getLogger("quart_openai_sse")

_NAMED = 5
"""How many hidden routes a warning names."""

_DEEPEST = 20
"""How many wrappers around a Flask app are opened."""

_WRAPPED = ("app", "application", "_app", "__self__", "__wrapped__", "func")
"""The attributes in which middleware, a bound method and a decorated function hold the app that they call."""


def check_wsgi_app(app: Any) -> None:
    """Raises `ConfigurationError` unless *app* can be called as a WSGI app."""
    if isinstance(app, Quart):
        raise ConfigurationError(
            "mount(): the first argument is a Quart app. Pass the Flask app first, and the Quart app second."
        )
    name = f"{type(app).__module__}.{type(app).__qualname__}" if not hasattr(app, "__name__") else app.__name__
    if not callable(app):
        raise ConfigurationError(f"mount(): the first argument must be a WSGI app, such as a Flask app, not {name}.")
    if _is_asgi_app(app):
        raise ConfigurationError(
            f"mount(): {name} is an ASGI app, and the first argument must be a WSGI app, such as a Flask app. "
            "See 'An ASGI app instead of Flask' in docs/how-to/beside-flask.md."
        )
    if not _takes(app, 2):
        raise ConfigurationError(
            f"mount(): {name} cannot be called with environ and start_response. Pass a WSGI app, such as a Flask app."
        )


def warn_of_hidden_routes(app: Any, prefixes: Collection[str]) -> None:
    """Logs a warning if *app* is a Flask app, or wraps one, that has routes below *prefixes*."""
    url_map = next((found for each in _unwrapped(app) if isinstance(found := _attribute(each, "url_map"), Map)), None)
    paths = {rule.rule for rule in url_map.iter_rules()} if url_map is not None else set()
    hidden = sorted(path for path in paths if any(f"{path}/".startswith(f"{prefix}/") for prefix in prefixes))
    if hidden:
        more = f" and {len(hidden) - _NAMED} more" if len(hidden) > _NAMED else ""
        logger.warning(
            "mount: requests below %s go to the Quart app, so these routes of the Flask app are not reached: %s%s. "
            "Choose another url_prefix for QuartOpenAISSE, and the same prefix for mount.",
            " and ".join(sorted(prefixes)),
            ", ".join(hidden[:_NAMED]),
            more,
        )


def warn_of_websocket(path: str) -> None:
    """Logs a warning that a websocket to *path* was refused."""
    logger.warning(
        "mount: a websocket to %s was refused with 403, because WSGI apps have no websockets. An extension that adds "
        "them (Flask-Sock, Flask-SocketIO) needs a server of its own: serve the Flask app in another process.",
        quote(path),
    )


def _is_asgi_app(app: Any) -> bool:
    function = called_function(app)
    if iscoroutinefunction(function) or (_takes(app, 3) and not _takes(app, 2)):
        return True
    # A decorator may pass on whatever it is called with.
    return _takes(app, 3) and iscoroutinefunction(unwrap(function)) and not _takes(unwrap(function), 2)


def _takes(function: Any, number: int) -> bool:
    """Whether *function* can be called with *number* arguments, whatever a function that it decorates takes."""
    try:
        signature(function, follow_wrapped=False).bind(*range(number))
    except TypeError:
        return False
    except ValueError:  # a function in C, of which Python knows no signature
        return number == 2
    return True


def _unwrapped(app: Any) -> Iterator[Any]:
    """*app*, and the apps that it wraps."""
    for _ in range(_DEEPEST):
        if app is None:
            return
        yield app
        app = next((found for name in _WRAPPED if callable(found := _attribute(app, name))), None)


def _attribute(app: Any, name: str) -> Any:
    """The attribute *name* of *app*; `None` if it has none, or cannot be read yet."""
    with suppress(Exception):  # whatever a property of middleware raises
        return getattr(app, name, None)
    return None
