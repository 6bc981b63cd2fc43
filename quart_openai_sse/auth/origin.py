"""The check that protects cookies from cross-site requests (CSRF)."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from quart import request

from quart_openai_sse.errors import OriginDenied

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, 9.2.1), for which the origin is not checked."""


def check_origin(trusted: Collection[str]) -> None:
    """Raises `OriginDenied` if a page of another origin sent the current request, unless its origin is *trusted*."""
    origin = request.headers.get("Origin")
    if origin in trusted and origin is not None:
        return
    site = request.headers.get("Sec-Fetch-Site")
    if site in ("same-origin", "none"):
        return
    # A browser sends at least one of the two headers with an unsafe method; a request without both is not from a page.
    if site is not None or (origin is not None and _host(origin) != _host(f"{request.scheme}://{request.host}")):
        raise OriginDenied("A page of another origin must not use this cookie; see trusted_origins.")


def _host(origin: str) -> tuple[str | None, int | None]:
    """Host and port. The scheme is not compared, since a proxy in front may have terminated TLS."""
    try:
        parts = urlsplit(origin)
        port = None if parts.port in (80, 443) else parts.port
        return parts.hostname, port
    except ValueError:
        return None, None
