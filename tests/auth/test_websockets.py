"""The principal that opens a websocket, and the protection against pages of other origins."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from quart import Quart, request, session, websocket
from quart.testing.connections import WebsocketResponseError
from quart_auth import AuthUser, QuartAuth, login_user

from quart_openai_sse import (
    QuartOpenAISSE,
    allow_anonymous,
    bearer_tokens,
    first_of,
    quart_auth_user,
    session_user,
)
from quart_openai_sse.auth import forward_auth, on_behalf_of
from quart_openai_sse.testing import ScriptedUpstream
from tests.conftest import ANN, QUESTION, TOKENS, CreateApp, Serve

HOST = {"Origin": "http://localhost"}  # of Quart's test client


def add_view(app: Quart, ai: QuartOpenAISSE) -> None:
    """A websocket that sends its principal."""

    @app.websocket("/who")
    async def who():
        principal = await ai.principal()
        await websocket.send(f"{principal} {principal.cookie}")


async def answer(client: Any, headers: Mapping[str, str]) -> Any:
    """The first message, or the status and the code of the refusal."""
    try:
        async with client.websocket("/who", headers=headers) as connection:
            return await connection.receive()
    except WebsocketResponseError as refused:
        return refused.response.status_code, (await refused.response.get_json())["error"]["code"]


async def own_hook() -> str | None:
    return "ann" if websocket.headers.get("X-Key") == "k" else None


HOOKS = {
    "bearer_tokens": (bearer_tokens(TOKENS), ANN, "token:ann False"),
    "first_of": (first_of(session_user(), bearer_tokens(TOKENS)), ANN, "token:ann False"),
    "on_behalf_of": (
        on_behalf_of(bearer_tokens(TOKENS), allowed={"ann"}),
        {**ANN, "X-On-Behalf-Of": "eve"},
        "session:eve False",
    ),
    "allow_anonymous": (allow_anonymous(), {}, "anonymous: False"),
    "the app's own": (own_hook, {"X-Key": "k"}, "app:ann False"),
    "the app's own, with a password": (own_hook, {"X-Key": "k", "Authorization": "Basic x", **HOST}, "app:ann True"),
    "the app's own, with a cookie": (own_hook, {"X-Key": "k", "Cookie": "a=b", **HOST}, "app:ann True"),
}


@pytest.mark.parametrize(("hook", "headers", "expected"), HOOKS.values(), ids=HOOKS)
async def test_a_hook_recognises_the_caller_that_opens_a_websocket(
    create_app: CreateApp, hook: Any, headers: dict[str, str], expected: str
) -> None:
    app, ai = create_app(ScriptedUpstream(), auth=hook)
    add_view(app, ai)
    assert await answer(app.test_client(), headers) == expected


async def test_without_credentials_the_handshake_is_a_401_in_the_clients_language(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream(), translations={"de": {"Please log in.": "Bitte melde dich an."}})
    add_view(app, ai)
    with pytest.raises(WebsocketResponseError) as refused:
        async with app.test_client().websocket("/who", headers={"Accept-Language": "de"}) as connection:
            await connection.receive()
    error = (await refused.value.response.get_json())["error"]
    assert (refused.value.response.status_code, error["user_message"]) == (401, "Bitte melde dich an.")


ORIGINS: dict[str, tuple[dict[str, str], Any]] = {
    "the same origin": (HOST, "session:ann True"),
    "the same origin, as the browser says": ({"Sec-Fetch-Site": "same-origin"}, "session:ann True"),
    "a trusted origin": ({"Origin": "https://friend.example"}, "session:ann True"),
    "no page": ({}, "session:ann True"),
    "another origin": ({"Origin": "https://evil.example"}, (403, "origin_denied")),
    "another port": ({"Origin": "http://localhost:8000"}, (403, "origin_denied")),
    "no origin at all": ({"Origin": "null"}, (403, "origin_denied")),
    "another site, as the browser says": ({"Sec-Fetch-Site": "cross-site"}, (403, "origin_denied")),
}


@pytest.mark.parametrize(("headers", "expected"), ORIGINS.values(), ids=ORIGINS)
async def test_a_page_of_another_origin_cannot_open_a_websocket_with_a_users_cookie(
    create_app: CreateApp, headers: dict[str, str], expected: Any
) -> None:
    """The browser sends the cookie, and no preflight (RFC 6455, section 10.2)."""
    app, ai = create_app(ScriptedUpstream(), auth=session_user(), trusted_origins=["https://friend.example"])
    add_view(app, ai)

    @app.post("/login")
    async def login():
        session["_user_id"] = "ann"
        return ""

    client = app.test_client()
    await client.post("/login")
    assert await answer(client, headers) == expected


async def test_the_login_of_quart_auth_holds_for_a_websocket_of_the_same_origin(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream(), auth=quart_auth_user())
    QuartAuth(app, cookie_secure=False)
    add_view(app, ai)

    @app.post("/login")
    async def login():
        login_user(AuthUser("ann"))
        return ""

    client = app.test_client()
    await client.post("/login")
    assert await answer(client, HOST) == "quart-auth:ann True"
    assert await answer(client, {"Origin": "https://evil.example"}) == (403, "origin_denied")


async def test_the_old_app_is_asked_with_the_cookies_of_a_websocket(create_app: CreateApp, serve: Serve) -> None:
    old = Quart("old app")

    @old.get("/whoami")
    async def whoami():
        return {"id": request.cookies.get("user")}

    address = (await serve(old)).base_url
    app, ai = create_app(ScriptedUpstream(), auth=forward_auth(f"{address}/whoami"))
    add_view(app, ai)
    cookie = {"Cookie": "user=ann"}
    assert await answer(app.test_client(), cookie | HOST) == "forward:ann True"
    assert await answer(app.test_client(), cookie | {"Origin": "https://evil.example"}) == (403, "origin_denied")


async def test_a_websocket_streams_an_answer(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream("one two"))

    @app.websocket("/ask")
    async def ask():
        stream = await ai.start({"messages": QUESTION}, principal=await ai.principal())
        async with stream.events() as events:
            async for event in events:
                await websocket.send_json([event.name, event.text])

    received = [["", ""]]
    async with app.test_client().websocket("/ask", headers=ANN) as connection:
        while received[-1][0] != "completed":
            received.append(await connection.receive_json())
    assert "".join(text for _, text in received) == "one two"


@pytest.mark.parametrize(("headers", "status"), [(ANN, 101), ({}, 401)], ids=["with a token", "without"])
async def test_hypercorn_answers_the_handshake(
    create_app: CreateApp, serve: Serve, headers: dict[str, str], status: int
) -> None:
    app, ai = create_app(ScriptedUpstream())
    add_view(app, ai)
    url = (await serve(app)).base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    lines = [
        "GET /who HTTP/1.1",
        f"Host: {url.host}:{url.port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert status == 101 or b"application/json" in head
    writer.close()
    await writer.wait_closed()


async def test_outside_of_a_request_and_a_websocket_there_is_no_principal(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream())
    async with app.app_context():
        with pytest.raises(RuntimeError, match="context"):
            await ai.principal()
