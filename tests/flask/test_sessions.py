"""A Flask app's session cookie in a Quart app: valid for as long as in Flask, and never written."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask import session as flask_session
from quart import Quart

from quart_openai_sse import QuartOpenAISSE, session_user
from quart_openai_sse.flask import share_session
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish
from tests.conftest import QUESTION, Serve

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}


@pytest.fixture
def flask_app() -> Flask:
    """An app with permanent sessions."""
    app = Flask("old")
    app.config.update(
        SECRET_KEY="secret",
        SESSION_COOKIE_NAME="old",
        SESSION_COOKIE_SECURE=True,
        PERMANENT_SESSION_LIFETIME=timedelta(minutes=30),
    )

    @app.post("/login")
    def login() -> str:
        flask_session.permanent = True
        flask_session["_user_id"] = "42"
        return ""

    return app


def beside(flask_app: Flask, upstream: Any, **options: Any) -> Quart:
    app = Quart(__name__)
    share_session(flask_app, app)
    QuartOpenAISSE(app, auth=session_user(), upstream=lambda _: upstream, base_url="http://127.0.0.1:9/v1", **options)
    return app


def logged_in(flask_app: Flask) -> str:
    response = flask_app.test_client().post("/login", base_url="https://old.example")
    return response.headers["Set-Cookie"].partition(";")[0]


async def test_the_cookie_is_recognised_and_never_sent_back(flask_app: Flask, serve: Serve) -> None:
    client = await serve(beside(flask_app, ScriptedUpstream("hello")), headers={"Cookie": logged_in(flask_app)})
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/client.js")):
        response = await client.request(method, path, json=BODY)
        assert (response.status_code, "Set-Cookie" in response.headers) == (200, False), path


async def test_it_is_good_for_as_long_as_flask_says(
    flask_app: Flask, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    for age, status in ((29 * 60, 200), (31 * 60, 401)):
        with monkeypatch.context() as earlier:
            earlier.setattr(time, "time", lambda age=age: now - age)
            cookie = logged_in(flask_app)
        client = await serve(beside(flask_app, ScriptedUpstream()), headers={"Cookie": cookie})
        assert (await client.get("/v1/models")).status_code == status


async def test_a_key_that_was_replaced_is_still_read(flask_app: Flask, serve: Serve) -> None:
    cookie = logged_in(flask_app)
    flask_app.config.update(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["secret"])
    client = await serve(beside(flask_app, ScriptedUpstream()), headers={"Cookie": cookie})
    assert (await client.get("/v1/models")).status_code == 200


async def test_a_late_response_does_not_undo_a_log_out(flask_app: Flask, serve: Serve) -> None:
    gate = asyncio.Event()
    upstream = ScriptedUpstream([gate.wait, chunk("hi"), finish()])
    client = await serve(beside(flask_app, upstream), headers={"Cookie": logged_in(flask_app)})
    waiting = asyncio.ensure_future(client.post("/v1/chat/completions", json=BODY))
    while not upstream.running:
        await asyncio.sleep(0)
    gate.set()  # by now Flask may have taken the cookie back
    assert "Set-Cookie" not in (await waiting).headers
