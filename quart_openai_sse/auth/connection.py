"""The connection that is being authenticated: a request, or the handshake of a websocket."""

from __future__ import annotations

from quart import Request, Websocket, has_websocket_context, request, websocket


def current_connection() -> Request | Websocket:
    """The current request or websocket: both have `headers`, `scheme` and `host`.

    Raises `RuntimeError` outside of both.
    """
    return websocket if has_websocket_context() else request


_REMEMBERED = ("basic", "digest", "negotiate", "ntlm")
"""Schemes whose credentials a browser asks its user for, remembers, and sends by itself (Fetch, section 4.6)."""


def has_ambient_credentials() -> bool:
    """Whether the current request or websocket has credentials that a browser sends for a page of any origin."""
    headers = current_connection().headers
    schemes = (value.strip().partition(" ")[0].lower() for value in headers.getlist("Authorization"))
    return "Cookie" in headers or any(scheme in _REMEMBERED for scheme in schemes)
