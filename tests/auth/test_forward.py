"""Forward auth: another app identifies the caller, is asked as rarely as possible, and its failures are 503s."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import httpx2
import pytest
from quart import Quart, Response, abort, redirect, request

from quart_openai_sse import Principal
from quart_openai_sse.auth import Authenticate, forward_auth
from quart_openai_sse.errors import AuthUnavailable, ConfigurationError
from quart_openai_sse.testing import ScriptedUpstream, read, serve_app
from tests.auth.test_hooks import BODY, refuses_a_strangers_page, whoami
from tests.conftest import Clock, CreateApp, Serve


class OldApp:
    """An app with sessions on its server: it returns the user that a cookie belongs to, and counts the requests."""

    def __init__(self) -> None:
        self.sessions: dict[str, Any] = {"abc": 42, "def": "bob"}
        self.requests: list[dict[str, str]] = []
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.answer: Callable[[], Any] | None = None
        self.app = Quart("old")
        self.app.add_url_rule("/whoami", view_func=self.whoami)
        self.url = ""

    async def whoami(self) -> Any:
        self.requests.append(dict(request.headers))
        self.asked.set()
        await self.open.wait()
        if self.answer is not None:
            return self.answer()
        user = self.sessions.get(request.cookies.get("session", ""))
        return {"id": user} if user is not None else abort(401)


@pytest.fixture
async def old() -> AsyncIterator[OldApp]:
    old = OldApp()
    async with serve_app(old.app) as address:
        old.url = f"http://{address}/whoami"
        yield old
        old.open.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("quart_openai_sse.auth.forward.monotonic", clock)
    return clock


def cookie(session: str) -> dict[str, str]:
    return {"Cookie": f"session={session}"}


async def asked(hook: Authenticate, headers: Any) -> Any:
    """The principal that the hook returns for a request with these headers."""
    async with Quart("x").test_request_context("/", headers=headers):
        return await hook()


async def test_the_old_app_identifies_the_caller(create_app: CreateApp, serve: Serve, old: OldApp) -> None:
    app, ai = create_app(ScriptedUpstream("hello"), auth=forward_auth(old.url))
    client = await whoami(app, ai, serve, headers={})
    expected = {"principal": "forward:42", "cookie": True, "anonymous": False}
    assert (await client.get("/who", headers=cookie("abc"))).json() == expected
    assert (await client.get("/who", headers=cookie("def"))).json()["principal"] == "forward:bob"
    assert (await client.get("/who", headers=cookie("xyz"))).status_code == 401
    assert len(old.requests) == 3
    assert (await client.get("/who")).status_code == 401  # without a cookie it is not asked
    assert (await client.get("/who", headers={"Authorization": "Bearer abc"})).status_code == 401
    assert len(old.requests) == 3
    url = (await client.post("/v1/streams", json=BODY, headers=cookie("abc"))).json()["url"]
    assert (await read((await client.get(url, headers=cookie("abc"))).content)).text == "hello"
    assert (await client.get(url, headers=cookie("def"))).status_code == 404


async def test_the_old_app_is_sent_only_the_headers_it_needs(serve: Serve, old: OldApp) -> None:
    sent = {
        "Cookie": "session=abc; other=1",
        "User-Agent": "Firefox",
        "X-Forwarded-For": "192.0.2.1",
        "Authorization": "Bearer secret",
        "X-Other": "1",
        "Content-Type": "application/json",
    }
    await asked(forward_auth(old.url), sent)
    await asked(forward_auth(old.url, forward=["x-other", "Cookie"]), sent)
    host = old.url.split("/")[2]
    always = {"Host": host, "Cookie": "session=abc; other=1", "Accept": "application/json", "Connection": "keep-alive"}
    always["Accept-Encoding"] = "identity"
    first, second = old.requests
    assert {**first, "Remote-Addr": None} == {
        **always,
        "User-Agent": "Firefox",
        "X-Forwarded-For": "192.0.2.1",
        "Remote-Addr": None,
    }
    assert {**second, "Remote-Addr": None} == {**always, "User-Agent": "", "X-Other": "1", "Remote-Addr": None}


async def test_a_user_is_cached_for_longer_than_the_absence_of_a_user(old: OldApp, clock: Clock) -> None:
    hook = forward_auth(old.url, ttl=10, negative_ttl=1)
    for _ in range(3):
        assert str(await asked(hook, cookie("abc"))) == "forward:42"
    assert len(old.requests) == 1
    del old.sessions["abc"]  # logged out
    clock.now += 9
    assert str(await asked(hook, cookie("abc"))) == "forward:42"
    clock.now += 1
    for _ in range(3):
        assert await asked(hook, cookie("abc")) is None
    assert len(old.requests) == 2
    old.sessions["abc"] = 42  # logged in again, with the same session
    clock.now += 1
    assert str(await asked(hook, cookie("abc"))) == "forward:42"
    assert len(old.requests) == 3


async def test_a_slow_answer_is_not_cached_for_longer(old: OldApp, clock: Clock) -> None:
    hook = forward_auth(old.url, ttl=10)
    old.open.clear()
    asking = asyncio.ensure_future(asked(hook, cookie("abc")))
    await old.asked.wait()
    clock.now += 4
    old.open.set()
    assert await asking
    clock.now += 6
    del old.sessions["abc"]
    assert await asked(hook, cookie("abc")) is None


async def test_answers_are_those_of_one_set_of_headers(old: OldApp) -> None:
    hook = forward_auth(old.url, forward=["X-A", "X-B"])
    for others in ({}, {"X-A": "1"}, {"X-B": "1"}, {"X-A": "1", "X-B": ""}):
        await asked(hook, cookie("abc") | others)
    assert len(old.requests) == 4


async def test_only_so_many_answers_are_kept(old: OldApp) -> None:
    hook = forward_auth(old.url, max_entries=2, negative_ttl=100)

    async def requests(session: str) -> int:
        before = len(old.requests)
        await asked(hook, cookie(session))
        return len(old.requests) - before

    assert [await requests(session) for session in ("abc", "def", "abc", "xyz")] == [1, 1, 0, 1]
    assert [await requests(session) for session in ("abc", "xyz", "def")] == [0, 0, 1]  # what was used last is kept


async def test_many_at_once_ask_once_and_leaving_does_not_end_it(old: OldApp) -> None:
    hook = forward_auth(old.url)
    old.open.clear()
    asking = [asyncio.ensure_future(asked(hook, cookie("abc"))) for _ in range(10)]
    await old.asked.wait()
    asking[0].cancel()
    old.open.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert {str(each) for each in found[1:]} == {"forward:42"}
    assert len(old.requests) == 1


ANSWERS: dict[str, tuple[Callable[[], Any], int]] = {
    "nobody": (lambda: {"id": None}, 401),
    "an empty id": (lambda: {"id": ""}, 401),
    "401": (lambda: Response("", 401), 401),
    "403": (lambda: Response("", 403), 401),
    "to the login": (lambda: redirect("/login"), 401),
    "a text": (lambda: {"id": "ann"}, 200),
    "zero": (lambda: {"id": 0}, 200),
    "404": (lambda: Response('{"id": 42}', 404), 503),
    "429": (lambda: Response('{"id": 42}', 429), 503),
    "500": (lambda: Response('{"id": 42}', 500), 503),
    "201": (lambda: Response('{"id": 42}', 201), 503),
    "204": (lambda: Response("", 204), 503),
    "a login page": (lambda: Response("<!doctype html>"), 503),
    "no id": (lambda: {"name": "ann"}, 503),
    "a list": (lambda: ["ann"], 503),
    "true": (lambda: {"id": True}, 503),
    "an object": (lambda: {"id": {"id": 1}}, 503),
    "a broken line": (lambda: {"id": "a\nb"}, 503),
    "a mark that turns a line around": (lambda: {"id": "a\u202eb"}, 503),
    "too long an id": (lambda: {"id": "x" * 256}, 503),
    "too long a number": (lambda: {"id": 10**255}, 503),
    "too much": (lambda: {"id": 1, "more": "x" * (1 << 20)}, 503),
    "compressed": (lambda: Response(gzip.compress(b'{"id": 42}'), headers={"Content-Encoding": "gzip"}), 503),
}


@pytest.mark.parametrize(("answer", "status"), ANSWERS.values(), ids=ANSWERS)
async def test_only_a_clear_answer_lets_in_or_keeps_out(
    create_app: CreateApp, serve: Serve, old: OldApp, answer: Callable[[], Any], status: int
) -> None:
    client = await serve(create_app(ScriptedUpstream(), auth=forward_auth(old.url))[0], headers=cookie("abc"))
    old.answer = answer
    response = await client.get("/v1/models")
    assert response.status_code == status
    if status != 200:
        error = response.json()["error"]
        assert error["code"] == ("invalid_api_key" if status == 401 else "auth_unavailable")
        assert response.headers.get("Retry-After") == (None if status == 401 else "5")


LACKS = {
    "no id": (lambda: {"user_id": "canary"}, "the answer has no member 'id'"),
    "a list": (lambda: ["canary"], "the answer is not a JSON object"),
    "a page": (lambda: Response("<!doctype html>canary"), "the answer is not JSON"),
    "an object": (lambda: {"id": {"canary": 1}}, "whole number or null, not dict"),
    "true": (lambda: {"id": True, "canary": 1}, "whole number or null, not bool"),
    "a broken line": (lambda: {"id": "canary\n"}, "the id must be 1 to 255 printable characters"),
    "an error": (lambda: Response("canary", 500), "the status is 500"),
}


@pytest.mark.parametrize(("answer", "said"), LACKS.values(), ids=LACKS)
async def test_the_log_says_what_an_answer_lacks_and_quotes_nothing_of_it(
    old: OldApp, caplog: pytest.LogCaptureFixture, answer: Callable[[], Any], said: str
) -> None:
    caplog.set_level("DEBUG", "quart_openai_sse")
    old.answer = answer
    with pytest.raises(AuthUnavailable):
        await asked(forward_auth(old.url), cookie("abc"))
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert said in record.getMessage()
    assert "canary" not in caplog.text


async def test_a_debug_line_says_why_nobody_was_recognised(old: OldApp, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "quart_openai_sse")
    hook = forward_auth(old.url, forward=["Authorization", "User-Agent"])
    by_header = forward_auth(old.url, id_header="X-User")
    assert await asked(hook, {"User-Agent": "Firefox"}) is None
    assert await asked(hook, cookie("xyz")) is None
    old.answer = lambda: {"id": None}
    assert await asked(hook, cookie("other")) is None
    assert await asked(by_header, cookie("abc")) is None
    host = old.url.split("/")[2]
    assert [record.getMessage() for record in caplog.records if record.name == "quart_openai_sse"] == [
        "forward_auth: no user was recognised: the request has no Cookie or Authorization",
        f"forward_auth: {host} recognised no user: the status is 401",
        f"forward_auth: {host} recognised no user: the id is null or empty",
        f"forward_auth: {host} recognised no user: the header X-User is missing",
    ]


async def test_two_headers_with_an_id_are_no_answer(old: OldApp, caplog: pytest.LogCaptureFixture) -> None:
    old.answer = lambda: Response("", headers=[("X-User", "ann"), ("X-User", "bob")])  # type: ignore[arg-type]
    with pytest.raises(AuthUnavailable):
        await asked(forward_auth(old.url, id_header="X-User"), cookie("abc"))
    assert "the answer has 2 headers X-User" in caplog.text


CREDENTIALS = {
    "Basic": "Authorization",
    "Bearer": "authorization",
    "a proxy's": "Proxy-Authorization",
    "a key": "X-API-Key",
    "a token of one's own": "X-Acme-Token",
    "the user, by a proxy": "X-Forwarded-User",
    "a certificate, by a proxy": "X-Forwarded-Client-Cert",
}


@pytest.mark.parametrize("name", CREDENTIALS.values(), ids=CREDENTIALS)
async def test_any_credential_that_is_forwarded_is_asked_about(old: OldApp, name: str) -> None:
    old.answer = lambda: {"id": request.headers[name].removesuffix(" secret")}
    hook = forward_auth(old.url, forward=[name, "User-Agent"])
    assert await asked(hook, {name: "ann secret"}) == Principal("ann", realm="forward", cookie=False)
    assert "Cookie" not in old.requests[0]
    assert await asked(forward_auth(old.url), {name: "ann secret"}) is None  # it is not forwarded
    assert await asked(hook, {name: ""}) is None
    assert len(old.requests) == 1


async def test_what_only_describes_a_request_is_not_asked_about(old: OldApp) -> None:
    described = ["User-Agent", "X-Forwarded-For", "Accept-Language", "X-Real-IP", "Sec-CH-UA", "Sec-Fetch-Site", "Host"]
    hook = forward_auth(old.url, forward=described)
    assert await asked(hook, dict.fromkeys(described, "1")) is None
    assert old.requests == []
    assert await asked(hook, {**dict.fromkeys(described, "1"), **cookie("abc")})
    assert old.requests[0]["X-Real-Ip"] == "1"


async def test_two_sets_of_credentials_are_two_answers(old: OldApp) -> None:
    old.answer = lambda: {"id": request.headers["Authorization"]}
    hook = forward_auth(old.url, forward=["Authorization"])
    found = [str(await asked(hook, {"Authorization": value})) for value in ("Basic a", "Basic b", "Basic a")]
    assert found == ["forward:Basic a", "forward:Basic b", "forward:Basic a"]
    assert len(old.requests) == 2


AMBIENT = {
    "Basic": ({"Authorization": "Basic x"}, True),
    "Digest": ({"Authorization": "digest username=x"}, True),
    "Negotiate": ({"Authorization": "Negotiate x"}, True),
    "a cookie": (cookie("abc"), True),
    "a cookie beside a token": ({**cookie("abc"), "Authorization": "Bearer x"}, True),
    "Bearer": ({"Authorization": "Bearer x"}, False),
    "a key": ({"X-Api-Key": "x"}, False),
}


@pytest.mark.parametrize(("headers", "checked"), AMBIENT.values(), ids=AMBIENT)
async def test_the_origin_is_checked_for_what_a_browser_sends_by_itself(
    create_app: CreateApp, serve: Serve, old: OldApp, headers: dict[str, str], checked: bool
) -> None:
    old.answer = lambda: {"id": "ann"}
    hook = forward_auth(old.url, forward=["Authorization", "X-Api-Key"])
    app, ai = create_app(ScriptedUpstream("hello"), auth=hook)
    client = await whoami(app, ai, serve, headers=headers)
    assert (await client.post("/who")).json() == {"principal": "forward:ann", "cookie": checked, "anonymous": False}
    foreign = {"Origin": "https://evil.example"}
    for path in ("/v1/chat/completions", "/who"):
        response = await client.post(path, json=BODY, headers=foreign)
        assert response.status_code == (403 if checked else 200)


@pytest.mark.parametrize("forward", ["Authorization", ["X User"], ["X-A\r\nX-B"], [""], ["transfer-encoding"], ["TE"]])
def test_what_is_forwarded_are_names_of_headers(forward: Any) -> None:
    with pytest.raises(ConfigurationError, match="forward_auth"):
        forward_auth("http://old.example/whoami", forward=forward)


async def test_an_outage_is_a_503_and_not_a_401(
    create_app: CreateApp, serve: Serve, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    old = OldApp()
    async with serve_app(old.app) as address:
        hook = forward_auth(f"http://{address}/whoami", ttl=10)
        app, ai = create_app(ScriptedUpstream(), auth=hook)
        client = await whoami(app, ai, serve, headers=cookie("abc"))
        assert (await client.get("/who")).status_code == 200
    assert (await client.get("/who")).status_code == 200  # as it was said
    clock.now += 11
    for _ in range(2):
        response = await client.get("/who")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "auth_unavailable")
    assert f"the user lookup at {address} failed: ConnectError" in caplog.text
    assert "abc" not in caplog.text + response.text
    async with serve_app(old.app, port=int(address.rpartition(":")[2])):
        assert (await client.get("/who")).status_code == 200


async def test_an_old_app_that_hangs_is_given_up(old: OldApp) -> None:
    old.open.clear()
    with pytest.raises(AuthUnavailable):
        await asked(forward_auth(old.url, timeout=0.05), cookie("abc"))


async def test_the_id_can_be_in_a_header(old: OldApp) -> None:
    hook = forward_auth(old.url, id_header="X-User", realm="session", negative_ttl=0)
    old.answer = lambda: Response("Hello, Ann!", headers={"X-User": "ann"})
    assert await asked(hook, cookie("abc")) == Principal("ann", realm="session", cookie=True)
    old.answer = lambda: Response('{"id": 42}')
    assert await asked(hook, cookie("def")) is None


async def test_several_cookie_headers_are_one(old: OldApp) -> None:
    assert await asked(forward_auth(old.url, forward=["cookie"]), [("Cookie", "other=1"), ("Cookie", "session=abc")])
    assert old.requests[0]["Cookie"] == "other=1; session=abc"


async def test_only_so_many_are_asked_for_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quart_openai_sse.auth.forward._MAX_LOOKUPS", 2)
    begun, on = [], asyncio.Event()

    async def answer(asked: httpx.Request) -> httpx.Response:
        begun.append(asked)
        await on.wait()
        return httpx.Response(200, json={"id": 42})

    hook = forward_auth(
        "http://old.example/whoami", client=lambda: httpx.AsyncClient(transport=httpx.MockTransport(answer))
    )
    asking = [asyncio.ensure_future(asked(hook, cookie(f"s{number}"))) for number in range(5)]
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(begun) == 2
    on.set()
    assert {str(each) for each in await asyncio.gather(*asking)} == {"forward:42"}
    assert len(begun) == 5


async def test_a_proxy_of_the_environment_is_not_used(old: OldApp, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert await asked(forward_auth(old.url), cookie("abc"))


async def test_every_event_loop_asks_for_itself(old: OldApp) -> None:
    hook = forward_auth(old.url)
    for _ in range(2):
        assert str(await asyncio.to_thread(asyncio.run, asked(hook, cookie("abc")))) == "forward:42"
    together = [asyncio.to_thread(asyncio.run, asked(hook, cookie("abc"))) for _ in range(4)]
    assert {str(each) for each in await asyncio.gather(*together)} == {"forward:42"}
    assert len(old.requests) == 6


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_the_client_that_asks_can_be_ones_own_and_is_closed(old: OldApp, library: Any) -> None:
    clients = []

    def create() -> Any:
        clients.append(library.AsyncClient(headers={"X-From": "us"}, follow_redirects=True))
        return clients[-1]

    assert await asked(forward_auth(old.url, client=create), cookie("abc"))
    old.answer = lambda: redirect("/whoami")
    assert await asked(forward_auth(old.url, client=create), cookie("abc")) is None
    assert [client.is_closed for client in clients] == [True, True]
    assert [headers["X-From"] for headers in old.requests] == ["us", "us"]


@pytest.mark.parametrize("url", ["", "/whoami", "ftp://old.example/", "http://me:hunter2@old.example/", "http://[::1"])
def test_the_old_app_needs_an_address(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        forward_auth(url)
    assert "hunter2" not in str(caught.value)


async def test_a_strangers_page_gets_nowhere_with_the_cookie(create_app: CreateApp, serve: Serve, old: OldApp) -> None:
    app, ai = create_app(ScriptedUpstream("hello"), auth=forward_auth(old.url))
    await refuses_a_strangers_page(await whoami(app, ai, serve, headers=cookie("abc")))
