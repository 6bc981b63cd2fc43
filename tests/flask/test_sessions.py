"""A Flask app's session cookie in a Quart app: valid for as long as in Flask, and never written."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest
from flask import Flask
from flask import session as flask_session
from flask.sessions import SecureCookieSessionInterface, SessionInterface
from itsdangerous import URLSafeTimedSerializer
from quart import Quart
from quart.sessions import SecureCookieSessionInterface as QuartInterface

from quart_openai_sse import QuartOpenAISSE, session_user
from quart_openai_sse.errors import ConfigurationError
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


# What Quart could not read --------------------------------------------------------------------------------------------


class ServerSide(SessionInterface):
    """A session interface as Flask-Session's: the cookie has an id."""


class OtherSalt(SecureCookieSessionInterface):
    """Signs with another salt."""

    salt = "other"


class OtherDigest(SecureCookieSessionInterface):
    """Signs with another hash."""

    digest_method = staticmethod(hashlib.sha256)


class OtherDerivation(SecureCookieSessionInterface):
    """Derives the key differently."""

    key_derivation = "django-concat"


class OtherSerializer(SecureCookieSessionInterface):
    """Writes plain JSON."""

    serializer = json


class OtherSigner(SecureCookieSessionInterface):
    """Signs with another key than the app's."""

    def get_signing_serializer(self, app: Flask) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer("another")


class FewerCookies(SecureCookieSessionInterface):
    """Does not change how the cookie is signed."""

    def should_set_cookie(self, app: Flask, session: Any) -> bool:
        return bool(session.modified)


@pytest.mark.parametrize(
    ("interface", "words"),
    [
        (ServerSide, r"test_sessions\.ServerSide keeps them.*forward_auth"),
        (OtherSalt, "the values of salt of the two apps differ.*forward_auth"),
        (OtherDigest, "digest_method"),
        (OtherDerivation, "key_derivation"),
        (OtherSerializer, "serializer"),
        (OtherSigner, "get_signing_serializer"),
    ],
)
def test_a_session_that_quart_could_not_read_is_refused(
    interface: Callable[[], SessionInterface], words: str, flask_app: Flask
) -> None:
    flask_app.session_interface = interface()
    with pytest.raises(ConfigurationError, match=words):
        share_session(flask_app, Quart(__name__))


@pytest.mark.parametrize("key", [None, ""])
def test_a_missing_key_is_refused(key: str | None, flask_app: Flask) -> None:
    flask_app.config["SECRET_KEY"] = key
    with pytest.raises(ConfigurationError, match="no SECRET_KEY"):
        share_session(flask_app, Quart(__name__))


def test_a_session_interface_of_quarts_that_does_not_read_the_cookie_is_refused(flask_app: Flask) -> None:
    app = Quart(__name__)
    app.session_interface = cast(Any, ServerSide())
    with pytest.raises(ConfigurationError, match=r"Quart app's session interface is .*ServerSide"):
        share_session(flask_app, app)


async def test_an_interface_that_signs_as_flasks_is_read(flask_app: Flask, serve: Serve) -> None:
    flask_app.session_interface = FewerCookies()
    client = await serve(beside(flask_app, ScriptedUpstream()), headers={"Cookie": logged_in(flask_app)})
    assert (await client.get("/v1/models")).status_code == 200


class OtherName(SecureCookieSessionInterface):
    """Gives its cookie another name and another path than the configuration."""

    def get_cookie_name(self, app: Any) -> str:
        return "named"

    def get_cookie_path(self, app: Any) -> str:
        return "/old"


async def test_an_interface_of_flasks_may_name_the_cookie(
    flask_app: Flask, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    flask_app.session_interface = OtherName()
    client = await serve(beside(flask_app, ScriptedUpstream()), headers={"Cookie": logged_in(flask_app)})
    assert (await client.get("/v1/models")).status_code == 200
    [record] = caplog.records
    assert "get_cookie_path of tests.flask.test_sessions.OtherName is '/old', so browsers" in record.getMessage()


async def test_another_salt_is_read_if_quart_has_it_as_well(flask_app: Flask, serve: Serve) -> None:
    class QuartsOtherSalt(QuartInterface):
        salt = OtherSalt.salt

    flask_app.session_interface = OtherSalt()
    app = Quart(__name__)
    app.session_interface = QuartsOtherSalt()
    share_session(flask_app, app)
    QuartOpenAISSE(app, auth=session_user(), upstream=lambda _: ScriptedUpstream(), base_url="http://127.0.0.1:9/v1")
    client = await serve(app, headers={"Cookie": logged_in(flask_app)})
    assert (await client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("change", ["interface", "key"])
async def test_what_changes_after_share_session_is_refused_at_the_start(change: str, flask_app: Flask) -> None:
    app = beside(flask_app, ScriptedUpstream())
    if change == "interface":  # as Flask-Session does when it is set up later
        flask_app.session_interface = ServerSide()
    else:
        flask_app.config["SECRET_KEY"] = "another"
    with pytest.raises(ConfigurationError, match="forward_auth"):
        await app.startup()


@pytest.mark.parametrize(
    ("settings", "prefix", "warned"),
    [
        ({"SESSION_COOKIE_PATH": "/app"}, "/v1", ["SESSION_COOKIE_PATH is '/app'", " to /v1,"]),
        ({"SESSION_COOKIE_PATH": "/v1/admin"}, "/v1", ["'/v1/admin'"]),
        ({"SESSION_COOKIE_PATH": "/ap"}, "/app", ["'/ap'"]),
        ({"SESSION_COOKIE_PATH": "/app"}, ["/app", "/ask", "/v1"], [" to /ask and /v1,"]),
        ({"APPLICATION_ROOT": "/app"}, "/v1", ["APPLICATION_ROOT is '/app'"]),
        ({}, "/v1", []),
        ({"SESSION_COOKIE_PATH": "/"}, "/v1", []),
        ({"SESSION_COOKIE_PATH": "/app"}, "/app/v1", []),
        ({"SESSION_COOKIE_PATH": "/app/"}, "/app", []),
        ({"SESSION_COOKIE_PATH": "/v1"}, "/v1", []),
        ({"SESSION_COOKIE_PATH": "/", "APPLICATION_ROOT": "/app"}, "/v1", []),
    ],
)
def test_a_path_that_hides_the_cookie_is_a_warning(
    settings: dict[str, str],
    prefix: str | list[str],
    warned: list[str],
    flask_app: Flask,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flask_app.config.update(settings)
    share_session(flask_app, Quart(__name__), prefix=prefix)
    assert len(caplog.records) == bool(warned)
    assert all(words in caplog.text for words in warned)
