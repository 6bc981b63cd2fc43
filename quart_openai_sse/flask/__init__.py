"""Beside a Flask app: in one process with it, and with its users' sessions."""

from quart_openai_sse.flask.mounting import mount
from quart_openai_sse.flask.sessions import share_session

__all__ = ["mount", "share_session"]
