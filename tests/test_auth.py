"""Who is let in: the hooks that ship, hooks of one's own, and a stranger's page with a visitor's cookie."""

from __future__ import annotations

import inspect
from typing import Any

import httpx
import pytest
from flask import Flask
from flask import session as flask_session
from quart import Quart, abort, request
from quart_auth import AuthUser, QuartAuth, login_user, logout_user

from quart_openai_sse import (
    Principal,
    QuartOpenAISSE,
    allow_anonymous,
    bearer_tokens,
    first_of,
    quart_auth_user,
    session_user,
)
from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.testing import ScriptedUpstream, read
from tests.conftest import ANN, QUESTION, TOKENS, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}


async def whoami(app: Quart, ai: QuartOpenAISSE, serve: Serve, **options: Any) -> Any:
    """A client, and a function that asks who the app takes it for."""

    @app.route("/who", methods=["GET", "POST"])
    async def who():
        principal = await ai.principal()
        return {"principal": str(principal), "cookie": principal.cookie, "anonymous": principal.anonymous}

    return await serve(app, **options)


def test_without_a_hook_the_app_does_not_start() -> None:
    with pytest.raises(ConfigurationError, match="allow_anonymous"):
        QuartOpenAISSE(Quart("x"), base_url="http://127.0.0.1:9/v1")


async def test_bearer_tokens_say_who_calls(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream())
    client = await whoami(app, ai, serve)
    assert (await client.get("/who")).json() == {"principal": "token:ann", "cookie": False, "anonymous": False}
    for value in ("Bearer nobody", "Basic token-ann", "token-ann", "Bearer", "", "Bearer token-ann x", "Bearer é"):
        response = await client.get("/who", headers={"Authorization": value.encode()})
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (await client.get("/who", headers={"Authorization": "bearer  token-bob"})).json()["principal"] == "token:bob"


def test_tokens_are_not_to_be_seen() -> None:
    hook = bearer_tokens(TOKENS)
    seen = repr(hook) + repr([cell.cell_contents for cell in hook.__closure__ or ()])
    assert "token-ann" not in seen


def test_tokens_are_compared_in_constant_time() -> None:
    source = inspect.getsource(bearer_tokens)
    assert "compare_digest" in source
    assert "==" not in source


def test_an_empty_token_lets_nobody_in() -> None:
    hook = bearer_tokens({"": "everybody"})
    assert not inspect.getclosurevars(hook).nonlocals["known"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("ann", "app:ann"), (42, "app:42"), (Principal("x", realm="own"), "own:x")],
)
async def test_any_coroutine_function_is_a_hook(create_app: CreateApp, serve: Serve, given: Any, expected: str) -> None:
    async def hook():
        return given if request.headers.get("X-Secret") == "yes" else None

    app, ai = create_app(ScriptedUpstream(), auth=hook)
    client = await whoami(app, ai, serve)
    assert (await client.get("/who")).status_code == 401
    assert (await client.get("/who", headers={"X-Secret": "yes"})).json()["principal"] == expected


@pytest.mark.parametrize(("given", "status"), [(False, 401), ("", 401), (True, 500), ([], 500), (b"x", 500)])
async def test_a_hook_that_gives_no_identity_lets_nobody_in(
    create_app: CreateApp, serve: Serve, given: Any, status: int
) -> None:
    async def hook():
        return given

    client = await serve(create_app(ScriptedUpstream(), auth=hook)[0])
    assert (await client.get("/v1/models")).status_code == status


@pytest.mark.parametrize(("code", "status"), [(401, 401), (403, 403)])
async def test_a_hook_may_abort(create_app: CreateApp, serve: Serve, code: int, status: int) -> None:
    async def hook():
        abort(code)

    client = await serve(create_app(ScriptedUpstream(), auth=hook)[0])
    response = await client.get("/v1/models")
    assert (response.status_code, response.json()["error"]["type"]) == (status, "invalid_request_error")


async def test_a_hook_that_breaks_is_a_500_without_its_reason(create_app: CreateApp, serve: Serve) -> None:
    async def hook():
        raise RuntimeError("database password")

    client = await serve(create_app(ScriptedUpstream(), auth=hook)[0])
    response = await client.get("/v1/models")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "password" not in response.text


async def test_quart_auth_users_are_recognised(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream(), auth=quart_auth_user())
    app.config["QUART_AUTH_COOKIE_SECURE"] = False
    QuartAuth(app)

    @app.post("/login")
    async def login():
        login_user(AuthUser("ann"))
        return ""

    @app.post("/logout")
    async def logout():
        logout_user()
        return ""

    client = await whoami(app, ai, serve, headers={})
    assert (await client.get("/who")).status_code == 401
    await client.post("/login")
    assert (await client.get("/who")).json() == {"principal": "quart-auth:ann", "cookie": True, "anonymous": False}
    await client.post("/logout")
    assert (await client.get("/who")).status_code == 401


async def test_the_session_cookie_of_a_flask_app_is_recognised(create_app: CreateApp, serve: Serve) -> None:
    flask = Flask("old")
    flask.secret_key = "secret"

    @flask.route("/")
    def login() -> str:
        flask_session["_user_id"] = 42  # as Flask-Login does
        return ""

    cookie = flask.test_client().get("/").headers["Set-Cookie"].partition(";")[0]
    app, ai = create_app(ScriptedUpstream(), auth=session_user())
    client = await whoami(app, ai, serve, headers={"Cookie": cookie})
    assert (await client.get("/who")).json() == {"principal": "session:42", "cookie": True, "anonymous": False}
    forged = await client.get("/who", headers={"Cookie": cookie[:-3] + "xxx"})
    assert forged.status_code == 401


async def test_the_first_hook_that_knows_the_caller_decides(create_app: CreateApp, serve: Serve) -> None:
    async def second():
        return "somebody" if "X-Other" in request.headers else None

    app, ai = create_app(ScriptedUpstream(), auth=first_of(bearer_tokens(TOKENS), second))
    client = await whoami(app, ai, serve, headers={})
    assert (await client.get("/who", headers={**ANN, "X-Other": "1"})).json()["principal"] == "token:ann"
    assert (await client.get("/who", headers={"X-Other": "1"})).json()["principal"] == "app:somebody"
    assert (await client.get("/who")).status_code == 401


async def test_the_same_id_in_two_realms_shares_nothing(create_app: CreateApp, serve: Serve) -> None:
    async def session_like():
        return Principal("ann", realm="session") if "X-Session" in request.headers else None

    app, _ = create_app(ScriptedUpstream(), auth=first_of(bearer_tokens(TOKENS), session_like))
    client = await serve(app, headers={})
    url = (await client.post("/v1/streams", json=BODY, headers=ANN)).json()["url"]
    assert (await client.get(url, headers=ANN)).status_code == 200
    assert (await client.get(url, headers={"X-Session": "1"})).status_code == 404


async def test_anonymous_callers_share_no_list_and_no_keys(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hello"), auth=allow_anonymous())
    client = await whoami(app, ai, serve, headers={})
    assert (await client.get("/who")).json() == {"principal": "anonymous:", "cookie": False, "anonymous": True}
    url = (await client.post("/v1/streams", json={**BODY, "thread": "t"})).json()["url"]
    assert (await client.get("/v1/streams", params={"thread": "t"})).json()["data"] == []
    assert (await read((await client.get(url)).content)).text == "hello"  # its id is the secret
    refused = await client.post("/v1/streams", json=BODY, headers={"Idempotency-Key": "k"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key")


# A stranger's page with a visitor's cookie ---------------------------------------------------------------------------

FOREIGN = {
    "another origin": ({"Origin": "https://evil.example"}, 403),
    "no origin at all": ({"Origin": "null"}, 403),
    "the same host on another port": ({"Origin": "http://127.0.0.1:1"}, 403),
    "a browser says cross-site": ({"Sec-Fetch-Site": "cross-site"}, 403),
    "a browser says same-site": ({"Sec-Fetch-Site": "same-site"}, 403),
    "garbage": ({"Origin": "http://[::1"}, 403),
    "a browser says same-origin": ({"Sec-Fetch-Site": "same-origin"}, 200),
    "a person typed it": ({"Sec-Fetch-Site": "none"}, 200),
    "the same origin": ({"Origin": "http://{host}"}, 200),
    "the same origin, behind TLS": ({"Origin": "https://{host}"}, 200),
    "a trusted origin": ({"Origin": "https://friend.example", "Sec-Fetch-Site": "cross-site"}, 200),
    "no browser": ({}, 200),
}


@pytest.mark.parametrize(("headers", "status"), FOREIGN.values(), ids=FOREIGN)
async def test_a_cookie_works_from_our_own_pages_only(
    create_app: CreateApp, serve: Serve, headers: dict[str, str], status: int
) -> None:
    async def by_cookie():
        return request.cookies.get("user")  # says nothing of cookies: then a cookie is taken for the proof

    app, ai = create_app(ScriptedUpstream(), auth=by_cookie, trusted_origins=["https://friend.example"])
    client = await whoami(app, ai, serve, headers={"Cookie": "user=ann"})
    host = f"{client.base_url.host}:{client.base_url.port}"
    headers = {name: value.replace("{host}", host) for name, value in headers.items()}
    response = await client.post("/v1/chat/completions", json=BODY, headers=headers)
    assert response.status_code == status
    if status == 403:
        assert response.json()["error"]["code"] == "origin_denied"
        assert (await client.delete("/v1/streams/" + "0" * 32, headers=headers)).status_code == 403
        assert (await client.post("/who", headers=headers)).status_code == 403
    assert (await client.get("/who", headers=headers)).status_code == 200


async def test_a_token_needs_no_origin(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream())[0])
    response = await client.post(
        "/v1/chat/completions", json=BODY, headers={"Origin": "https://other.example", "Cookie": "x=1"}
    )
    assert response.status_code == 200
    assert isinstance(client, httpx.AsyncClient)
