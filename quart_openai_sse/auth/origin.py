"""The check that protects cookies from cross-site requests (CSRF)."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

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
    if site is not None or (origin is not None and _host(origin) != _host(f"{connection.scheme}://{connection.host}")):
        raise OriginDenied("A page of another origin must not use this cookie; see trusted_origins.")


def _host(origin: str) -> tuple[str | None, int | None]:
    """Host and port. The scheme is not compared, since a proxy in front may have terminated TLS."""
    try:
        parts = urlsplit(origin)
        port = None if parts.port in (80, 443) else parts.port
        return parts.hostname, port
    except ValueError:
        return None, None
