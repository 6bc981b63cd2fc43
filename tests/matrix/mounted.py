"""The app that each server serves in the column "flask": a Flask app with streams beside it."""

from __future__ import annotations

import os

from flask import Flask, request
from quart import Quart

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.flask import mount

flask_app = Flask("old")
streaming_app = Quart("streams")
streaming_app.config.from_prefixed_env()
ai = QuartOpenAISSE(streaming_app, auth=bearer_tokens({os.environ["MATRIX_TOKEN"]: "alice"}))


@flask_app.get("/headers")
def headers() -> dict[str, str]:
    """What Flask is told of the request's headers."""
    return {name: value for name, value in request.environ.items() if name.startswith("HTTP_")}


app = mount(flask_app, streaming_app)
