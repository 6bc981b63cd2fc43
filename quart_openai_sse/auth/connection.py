"""The connection that is being authenticated: a request, or the handshake of a websocket."""

from __future__ import annotations

from quart import Request, Websocket, has_websocket_context, request, websocket


def current_connection() -> Request | Websocket:
    """The current request or websocket: both have `headers`, `scheme` and `host`.

    Raises `RuntimeError` outside of both.
    """
    return websocket if has_websocket_context() else request
