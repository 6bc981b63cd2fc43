"""The check that protects cookies from cross-site requests (CSRF)."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from quart import Request, Websocket

from quart_openai_sse.auth.connection import current_connection
from quart_openai_sse.errors import OriginDenied

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, 9.2.1), for which the origin is not checked."""


def check_origin(trusted: Collection[str]) -> None:
    """Raises `OriginDenied` if a page of another origin sent the current request, unless its origin is *trusted*.

    A websocket's handshake is such a request too.
    """
    connection = current_connection()
    origin = connection.headers.get("Origin")
    if origin in trusted and origin is not None:
        return
    site = connection.headers.get("Sec-Fetch-Site")
    if site in ("same-origin", "none"):
        return
    # A browser sends at least one of the two headers with an unsafe method or a handshake; a request without both is
    # not from a page.
    if site is not None:
        raise OriginDenied(f"{_DENIED} Sec-Fetch-Site is {_shown(site)}, and Origin is {_shown(origin)}. {_TRUST}")
    if origin is not None and not _same_host(origin, f"{connection.scheme}://{_own_host(connection)}"):
        host = connection.headers.get("Host")
        raise OriginDenied(f"{_DENIED} Origin is {_shown(origin)}, and Host is {_shown(host)}. {_PROXY} {_TRUST}")


_DENIED = "A page of another origin must not use this cookie."
_PROXY = (
    "If both should name the same host, a proxy has changed Host: configure it to pass on the browser's "
    "(nginx: proxy_set_header Host $http_host; Apache: ProxyPreserveHost On)."
)
_TRUST = "If pages of this origin may use the cookie, add the origin to trusted_origins."


def _shown(value: str | None) -> str:
    """A header's value as a message shows it: printable and short."""
    if value is None:
        return "not sent"
    return ascii(value if len(value) <= 100 else f"{value[:100]}...")


def _own_host(connection: Request | Websocket) -> str:
    """The request's host. Werkzeug takes none with an underscore (`my_app:5000`), as names in containers may be."""
    given = connection.headers.get("Host", "")
    return connection.host or (given if _WITH_UNDERSCORE.fullmatch(given) else "")


_WITH_UNDERSCORE = re.compile(r"[A-Za-z0-9_.-]+(:[0-9]+)?")


def _same_host(origin: str, own: str) -> bool:
    """Whether both have a host and a port, and the same ones. `null` and an invalid `Host` have no host."""
    host = _host(origin)
    return host is not None and host == _host(own)


def _host(origin: str) -> tuple[str, int | None] | None:
    """Host and port, or `None`. The scheme is not compared, since a proxy in front may have terminated TLS."""
    try:
        parts = urlsplit(origin)
        port = None if parts.port in (80, 443) else parts.port
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname else None
