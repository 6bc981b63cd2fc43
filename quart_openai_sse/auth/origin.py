"""The check that a page of another origin does not use a visitor's cookie."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from quart import request

from quart_openai_sse.errors import OriginDenied

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def check_origin(trusted: Collection[str]) -> None:
    origin = request.headers.get("Origin")
    if origin in trusted and origin is not None:
        return
    site = request.headers.get("Sec-Fetch-Site")
    if site in ("same-origin", "none"):
        return
    # Without either header it is no browser that runs somebody else's page.
    if site is not None or (origin is not None and _host(origin) != _host(f"{request.scheme}://{request.host}")):
        raise OriginDenied("A page of another origin can't use this cookie; see trusted_origins.")


def _host(origin: str) -> tuple[str | None, int | None]:
    """Host and port. The scheme is not compared: a proxy in front may have taken TLS off."""
    try:
        parts = urlsplit(origin)
        port = None if parts.port in (80, 443) else parts.port
        return parts.hostname, port
    except ValueError:
        return None, None
