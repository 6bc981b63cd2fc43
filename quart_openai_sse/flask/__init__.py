"""For an app beside a Flask app: one process for both (extra `flask`), and the Flask app's sessions."""

from quart_openai_sse.flask.mounting import mount
from quart_openai_sse.flask.sessions import share_session

__all__ = ["mount", "share_session"]
