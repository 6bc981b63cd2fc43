"""Authentication: the shipped hooks, an app's own hooks, and the protection against cross-site requests."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from flask import session as flask_session
from quart import Quart, Response, abort, current_app, g, request, session
from quart.sessions import SecureCookieSession, SecureCookieSessionInterface
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
from quart_openai_sse.auth import Authenticate, on_behalf_of
from quart_openai_sse.auth.authentication import at_once
from quart_openai_sse.errors import AuthenticationRequired, ConfigurationError, OpenAISSEError, PermissionDenied
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read
from tests.conftest import ANN, QUESTION, TOKENS, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}


async def whoami(app: Quart, ai: QuartOpenAISSE, serve: Serve, **options: Any) -> Any:
    """A client of the app, with a route `/who` that returns the current principal."""

    @app.route("/who", methods=["GET", "POST"])
    async def who():
        principal = await ai.principal()
        return {"principal": str(principal), "cookie": principal.cookie, "anonymous": principal.anonymous}

    return await serve(app, **options)


def test_without_a_hook_the_app_does_not_start() -> None:
    with pytest.raises(ConfigurationError, match="allow_anonymous"):
        QuartOpenAISSE(Quart("x"), base_url="http://127.0.0.1:9/v1")


async def test_bearer_tokens_identify_the_caller(create_app: CreateApp, serve: Serve) -> None:
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


def test_an_empty_token_is_never_accepted() -> None:
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
async def test_a_hook_that_returns_no_identity_is_an_error(
    create_app: CreateApp, serve: Serve, given: Any, status: int
) -> None:
    async def hook():
        return given

    client = await serve(create_app(ScriptedUpstream(), auth=hook)[0])
    assert (await client.get("/v1/models")).status_code == status


@pytest.mark.parametrize(
    "given",
    ["ann\nbob", "ann\u2028", "ann\x85", "ann\u202ebob", "ann\u200f", "x" * 256, 10**255]
    + [Principal(each) for each in ("", "ann\nbob", "ann\u2066")]
    + [Principal(42)],  # type: ignore[arg-type]
    ids=ascii,
)
async def test_an_id_that_could_forge_a_log_line_is_nobodys(
    create_app: CreateApp, serve: Serve, given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def hook():
        return given

    app, ai = create_app(ScriptedUpstream(), auth=first_of(hook, bearer_tokens(TOKENS)))
    client = await whoami(app, ai, serve, headers={})
    assert (await client.get("/who")).status_code == 401
    assert (await client.get("/who", headers=ANN)).json()["principal"] == "token:ann"
    [line, _] = [record.getMessage() for record in caplog.records if record.name == "quart_openai_sse"]
    assert line == "auth hook 'hook' recognised no caller: its id is not a text of 1 to 255 printable characters"


@pytest.mark.parametrize("owner", ["", "ann\n", "ann\u202e", "x" * 256, None, True], ids=ascii)
def test_tokens_are_for_ids(owner: Any) -> None:
    with pytest.raises(ConfigurationError, match="id") as caught:
        bearer_tokens({"hunter2": owner})
    assert "hunter2" not in str(caught.value)


def plain_hook() -> str:
    return "ann"


@pytest.mark.parametrize(
    "auth",
    [plain_hook, first_of(bearer_tokens({}), plain_hook), on_behalf_of(plain_hook, allowed={"ann"})],
    ids=["auth", "first_of", "on_behalf_of"],
)
async def test_a_hook_that_is_a_plain_function_is_a_500_that_says_what_to_write(
    create_app: CreateApp, serve: Serve, auth: Any
) -> None:
    app, ai = create_app(ScriptedUpstream(), auth=auth)
    async with app.test_request_context("/"):
        with pytest.raises(TypeError, match=r"plain_hook returned str .* write `async def plain_hook\(\): \.\.\.`"):
            await ai.principal()
    assert (await (await serve(app)).get("/v1/models")).status_code == 500


@pytest.mark.parametrize(("status", "kind"), [(401, "authentication_error"), (403, "invalid_request_error")])
async def test_a_hook_may_abort(create_app: CreateApp, serve: Serve, status: int, kind: str) -> None:
    async def hook():
        abort(status)

    client = await serve(create_app(ScriptedUpstream(), auth=hook)[0])
    response = await client.get("/v1/models")
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)


async def test_a_hook_that_takes_too_long_is_cancelled_and_a_503(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled = []

    async def hook():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(request.path)
            raise

    app, ai = create_app(ScriptedUpstream(), auth=first_of(bearer_tokens({}), hook), auth_timeout=0.01)
    client = await whoami(app, ai, serve)
    for path in ("/v1/models", "/who"):
        response = await client.get(path)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "auth_unavailable")
    assert cancelled == ["/v1/models", "/who"]
    assert caplog.text.count("auth hook 'hook' has been running for more than 0.01 s") == 1


async def test_a_hook_that_swallows_its_cancellation_is_a_503_all_the_same(create_app: CreateApp, serve: Serve) -> None:
    released = asyncio.Event()

    async def stubborn():
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()
        return "ann"

    app, ai = create_app(ScriptedUpstream(), auth=stubborn, auth_timeout=0.01)
    client = await whoami(app, ai, serve)
    try:
        for path in ("/v1/models", "/who"):
            response = await client.get(path)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "auth_unavailable")
    finally:
        released.set()


async def test_a_hook_that_is_cancelled_by_its_own_code_is_a_500_and_logged(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def cancels():
        raise asyncio.CancelledError

    client = await serve(create_app(ScriptedUpstream(), auth=cancels)[0])
    response = await client.get("/v1/models")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "auth hook 'cancels' was cancelled" in caplog.text


async def never(*args: Any) -> None:
    await asyncio.Event().wait()


def waits_first(hook: Any) -> Any:
    @functools.wraps(hook)
    async def decorated():
        await never()
        return await hook()

    return decorated


@pytest.mark.parametrize(
    ("hook", "name"),
    [
        (session_user("user", load=never), "never"),
        (session_user("user", load=functools.partial(never, 1)), "never"),
        (session_user("user", load=lambda user: never(user)), "<lambda>"),
        (first_of(bearer_tokens({}), session_user("user", load=never)), "never"),
        (first_of(bearer_tokens({}), never), "never"),
        (on_behalf_of(never, allowed={"x"}), "never"),
        (waits_first(bearer_tokens({})), "bearer_tokens_hook"),
    ],
)
async def test_a_warning_names_the_function_that_hangs(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture, hook: Any, name: str
) -> None:
    app, _ = create_app(ScriptedUpstream(), auth=hook, auth_timeout=0.05)
    client = await serve(app, headers=session_cookie(user=42))
    assert (await client.get("/v1/models")).status_code == 503
    assert f"auth hook {name!r} has been running for more than 0.05 s; still running: 1; late" in caplog.text


tenant: ContextVar[str] = ContextVar("tenant", default="none")


@pytest.mark.parametrize("kind", ["hook", "load", "load in a thread"])
async def test_what_a_hook_puts_into_a_context_variable_reaches_the_view(
    create_app: CreateApp, serve: Serve, kind: str
) -> None:
    def load(user):
        tenant.set(f"blue {request.path}")
        g.user = user
        return "ann"

    async def load_asynchronously(user):
        await asyncio.sleep(0)
        return load(user)

    async def hook():
        return await load_asynchronously(42)

    auth = {
        "hook": hook,
        "load": session_user("user", load=load_asynchronously),
        "load in a thread": session_user("user", load=load),
    }[kind]
    app, ai = create_app(ScriptedUpstream(), auth=auth)

    @app.get("/tenant")
    async def view():
        await ai.principal()
        return {"tenant": tenant.get(), "g": g.user}

    client = await serve(app, headers=session_cookie(user=42))
    for _ in range(2):
        assert (await client.get("/tenant")).json() == {"tenant": "blue /tenant", "g": 42}
    assert tenant.get() == "none"


async def test_an_app_context_that_a_hook_leaves_open_is_not_that_of_the_view(
    create_app: CreateApp, serve: Serve
) -> None:
    other = Quart("other")

    async def hook():
        await other.app_context().push()
        return "ann"

    app, ai = create_app(ScriptedUpstream(), auth=hook)

    @app.get("/app")
    async def view():
        await ai.principal()
        return {"app": current_app.name, "path": request.path}

    client = await serve(app)
    assert (await client.get("/app")).json() == {"app": app.name, "path": "/app"}


async def test_a_hook_that_awaits_nothing_runs_in_the_task_of_its_request(create_app: CreateApp) -> None:
    tasks = []

    class Watched(SecureCookieSession):
        """A session that notes which task reads it."""

        def get(self, *args: Any) -> Any:
            tasks.append(asyncio.current_task())
            return "ann"

    class Sessions(SecureCookieSessionInterface):
        session_class = Watched

    async def waits():
        return None

    at_once = [session_user(), first_of(bearer_tokens({}), session_user())]
    for hook in [*at_once, first_of(waits, session_user()), session_user(load=lambda user: True)]:
        app, ai = create_app(ScriptedUpstream(), auth=hook)
        app.session_interface = Sessions()
        async with app.test_request_context("/"):
            await ai.principal()
    current = asyncio.current_task()
    assert [task is current for task in tasks] == [True, True, False, False]


async def test_a_timeout_of_the_hooks_own_is_its_own_error(create_app: CreateApp) -> None:
    async def hook():
        raise TimeoutError("the database's")

    app, ai = create_app(ScriptedUpstream(), auth=hook)
    async with app.test_request_context("/"):
        with pytest.raises(TimeoutError, match="the database's"):
            await ai.principal()


async def test_a_load_that_hangs_is_a_503_and_its_thread_is_nobody_elses(create_app: CreateApp, serve: Serve) -> None:
    gate, names = threading.Event(), []

    def load(user):
        names.append(threading.current_thread().name)
        gate.wait()
        return True

    app, ai = create_app(ScriptedUpstream(), auth=session_user(load=load), auth_timeout=0.01, hook_threads=2)

    @app.before_request
    async def log_in():
        session["_user_id"] = "ann"

    client = await whoami(app, ai, serve)
    calls = None
    try:
        for _ in range(3):
            assert (await client.get("/who")).status_code == 503
        calls = app.extensions["quart_openai_sse"][ai.name].engines.current().hook_calls.auth
        assert set(names) <= {"quart_openai_sse auth hook"}  # none, if no thread has begun in time
        assert (calls.hanging, calls.late) == (len(names), 3)
        assert await asyncio.to_thread(len, "ab") == 2
    finally:
        gate.set()
    while calls.hanging:
        await asyncio.sleep(0)


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


def session_cookie(**values: Any) -> dict[str, str]:
    """The header with a session cookie, made by a Flask app with the same secret key."""
    flask = Flask("old")
    flask.secret_key = "secret"

    @flask.route("/")
    def login() -> str:
        flask_session.update(values)
        return ""

    return {"Cookie": flask.test_client().get("/").headers["Set-Cookie"].partition(";")[0]}


async def test_the_session_cookie_of_a_flask_app_is_recognised(create_app: CreateApp, serve: Serve) -> None:
    headers = session_cookie(_user_id=42)  # as Flask-Login does
    app, ai = create_app(ScriptedUpstream(), auth=session_user())
    client = await whoami(app, ai, serve, headers=headers)
    assert (await client.get("/who")).json() == {"principal": "session:42", "cookie": True, "anonymous": False}
    forged = await client.get("/who", headers={"Cookie": headers["Cookie"][:-3] + "xxx"})
    assert forged.status_code == 401


async def test_the_cookie_of_a_user_who_was_deleted_no_longer_works(
    create_app: CreateApp, serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "users.db"
    threads = []

    def load(user: int) -> bool:
        threads.append(threading.current_thread())
        with sqlite3.connect(path) as database:
            found = database.execute("SELECT 1 FROM user WHERE id = ?", [user]).fetchone()
        database.close()
        return found is not None

    def change(statement: str) -> None:
        with sqlite3.connect(path) as database:
            database.execute(statement)
        database.close()

    change("CREATE TABLE user (id INTEGER)")
    change("INSERT INTO user VALUES (42)")
    app, ai = create_app(ScriptedUpstream(), auth=session_user("user", load))
    client = await whoami(app, ai, serve, headers=session_cookie(user=42))
    assert (await client.get("/who")).json()["principal"] == "session:42"
    change("DELETE FROM user")
    assert (await client.get("/who")).status_code == 401
    assert threading.main_thread() not in threads


LOADED = {
    "True": (True, Principal("42", realm="session", cookie=True)),
    "an id": ("ann", Principal("ann", realm="session", cookie=True)),
    "a number": (0, Principal("0", realm="session", cookie=True)),
    "a principal": (Principal("ann", max_streams=3), Principal("ann", cookie=True, max_streams=3)),
    "None": (None, None),
    "False": (False, None),
}


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async def", "def"])
@pytest.mark.parametrize(("loaded", "expected"), LOADED.values(), ids=LOADED)
async def test_the_return_value_of_load_decides(loaded: Any, expected: Any, asynchronous: bool) -> None:
    asked = []

    def load(user: Any) -> Any:
        asked.append(user)
        return loaded

    async def load_asynchronously(user: Any) -> Any:
        return load(user)

    app = Quart("x")
    app.secret_key = "secret"
    hook = session_user(load=load_asynchronously if asynchronous else load)
    async with app.test_request_context("/", headers=session_cookie(_user_id=42)):
        assert await hook() == expected
    async with app.test_request_context("/"):
        assert await hook() is None
    assert asked == [42]


async def test_load_can_return_nothing_else(create_app: CreateApp, serve: Serve) -> None:
    hook = session_user(load=lambda user: object())
    client = await serve(create_app(ScriptedUpstream(), auth=hook)[0], headers=session_cookie(_user_id=42))
    assert (await client.get("/v1/models")).status_code == 500


async def test_the_first_hook_that_knows_the_caller_decides(create_app: CreateApp, serve: Serve) -> None:
    async def second():
        return "somebody" if "X-Other" in request.headers else None

    app, ai = create_app(ScriptedUpstream(), auth=first_of(bearer_tokens(TOKENS), second))
    client = await whoami(app, ai, serve, headers={})
    assert (await client.get("/who", headers={**ANN, "X-Other": "1"})).json()["principal"] == "token:ann"
    assert (await client.get("/who", headers={"X-Other": "1"})).json()["principal"] == "app:somebody"
    assert (await client.get("/who")).status_code == 401


@pytest.mark.parametrize("nobody", [None, False, ""])
async def test_a_hook_that_knows_no_caller_leaves_the_decision_to_the_next(nobody: Any) -> None:
    async def first():
        return nobody

    async def second():
        return "ann"

    assert await first_of(first, second)() == "ann"


def returns(value: Any) -> Authenticate:
    async def hook() -> Any:
        return value

    return hook


def raises(error: Callable[..., Exception], *args: str) -> Authenticate:
    async def hook() -> None:
        raise error(*args)  # a new one: its traceback would keep the request in memory

    return hook


def aborts(answer: Any) -> Authenticate:
    async def hook() -> None:
        abort(answer)

    return hook


class Expired(OpenAISSEError):
    """An app's own error."""

    status = 401
    code = "invalid_api_key"


NOBODY: dict[str, Authenticate] = {
    "None": returns(None),
    "False": returns(False),
    "an empty text": returns(""),
    "an invalid id": returns("a\nb"),
    "abort(401)": aborts(401),
    "abort with a response": aborts(Response("", 401)),
    "AuthenticationRequired": raises(AuthenticationRequired, "The key was revoked."),
    "an error of the app's own": raises(Expired),
}


@pytest.mark.parametrize("waiting", [True, False], ids=["with a time limit", "at once"])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("nobody", NOBODY.values(), ids=NOBODY)
async def test_first_of_goes_on_after_every_form_of_nobody(
    create_app: CreateApp, serve: Serve, nobody: Authenticate, place: int, waiting: bool
) -> None:
    async def asked() -> Any:
        return await nobody()

    hooks = [bearer_tokens({"token-cid": "cid"}), bearer_tokens(TOKENS)]
    hooks.insert(place, asked if waiting else at_once(asked))
    app, ai = create_app(ScriptedUpstream(), auth=first_of(*hooks))
    client = await whoami(app, ai, serve, headers={})
    assert (await client.get("/who", headers=ANN)).json()["principal"] == "token:ann"
    refused = await client.get("/who")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_if_nobody_is_recognised_the_caller_is_told_the_first_reason(create_app: CreateApp, serve: Serve) -> None:
    first = raises(AuthenticationRequired, "The key was revoked.")
    second = raises(AuthenticationRequired, "No key.")
    hook = first_of(bearer_tokens({}), aborts(401), first, first_of(second), bearer_tokens(TOKENS))
    client = await serve(create_app(ScriptedUpstream(), auth=hook)[0], headers={})
    assert (await client.get("/v1/models", headers=ANN)).status_code == 200
    refused = await client.get("/v1/models")
    assert (refused.status_code, refused.json()["error"]["message"]) == (401, "The key was revoked.")


@pytest.mark.parametrize(
    ("hook", "status"),
    [
        (aborts(403), 403),
        (aborts(Response("", 403)), 403),
        (raises(PermissionDenied, "No."), 403),
        (returns([]), 500),
        (raises(RuntimeError, "canary"), 500),
    ],
    ids=["abort(403)", "abort with a response", "PermissionDenied", "a list", "an exception"],
)
async def test_first_of_ends_with_any_other_answer(
    create_app: CreateApp, serve: Serve, hook: Authenticate, status: int
) -> None:
    client = await serve(create_app(ScriptedUpstream(), auth=first_of(hook, bearer_tokens(TOKENS)))[0])
    assert (await client.get("/v1/models")).status_code == status


@pytest.mark.parametrize("nobody", NOBODY.values(), ids=NOBODY)
async def test_no_further_hook_stands_in_for_a_service(
    create_app: CreateApp, serve: Serve, nobody: Authenticate
) -> None:
    hook = first_of(on_behalf_of(nobody, allowed=lambda principal: True), bearer_tokens(TOKENS))
    app, ai = create_app(ScriptedUpstream(), auth=hook)
    client = await whoami(app, ai, serve, headers={})
    assert (await client.get("/who", headers=ANN)).json()["principal"] == "token:ann"
    refused = await client.get("/who", headers={**ANN, "X-On-Behalf-Of": "42"})
    assert refused.status_code == 401
    assert refused.json()["error"]["message"] == "X-On-Behalf-Of needs the credentials of a service."


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


async def test_a_running_stream_of_an_anonymous_caller_is_on_no_list(create_app: CreateApp, serve: Serve) -> None:
    forever = asyncio.Event()
    app, _ = create_app(ScriptedUpstream([chunk("hi"), forever.wait]), auth=allow_anonymous())
    client = await serve(app, headers={})
    url = (await client.post("/v1/streams", json={**BODY, "thread": "t"})).json()["url"]
    async with client.stream("GET", url) as response:
        await anext(response.aiter_raw())
        assert (await client.get("/v1/streams", params={"thread": "t"})).json()["data"] == []


# What a principal may do ---------------------------------------------------------------------------------------------


async def test_a_model_must_be_allowed_by_everybody(create_app: CreateApp, serve: Serve) -> None:
    async def hook():
        names = request.headers.get("X-Models")
        return Principal("ann", models=None if names is None else frozenset(names.split()))

    app, ai = create_app(ScriptedUpstream(), auth=hook, models=["small", "large"])
    app.register_blueprint(ai.blueprint("few", url_prefix="/few", models={"small", "support"}))

    @ai.model("support")
    async def support(chat):
        yield "Hello."

    client = await serve(app, headers={})
    assert (await client.get("/v1/models")).json()["data"][0].keys() == {"id", "object", "created", "owned_by"}
    for prefix, models, expected in (
        ("/v1", None, ["support", "small", "large"]),
        ("/v1", "large other", ["large"]),
        ("/v1", "", []),
        ("/few", None, ["small", "support"]),
        ("/few", "large support", ["support"]),
    ):
        headers = {} if models is None else {"X-Models": models}
        listed = [model["id"] for model in (await client.get(f"{prefix}/models", headers=headers)).json()["data"]]
        assert sorted(listed) == sorted(expected)
        for model in ("small", "large", "support", "other"):
            body = {**BODY, "model": model}
            for path in ("chat/completions", "streams"):
                response = await client.post(f"{prefix}/{path}", json=body, headers=headers)
                if model in expected:
                    assert response.status_code in (200, 201)
                else:
                    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_the_upstreams_list_is_cut_to_what_a_principal_may_ask(create_app: CreateApp, serve: Serve) -> None:
    async def hook():
        return Principal("ann", models=request.headers.getlist("X-Model"))

    client = await serve(create_app(ScriptedUpstream(), auth=hook)[0], headers={})
    for name, expected in (("scripted", ["scripted"]), ("other", [])):
        listed = (await client.get("/v1/models", headers={"X-Model": name})).json()["data"]
        assert [model["id"] for model in listed] == expected


async def test_a_principals_own_limit_of_streams_replaces_that_of_all(create_app: CreateApp, serve: Serve) -> None:
    on = asyncio.Event()

    async def hook():
        limit = request.headers.get("X-Limit")
        who = request.headers["X-Who"]
        return Principal(who, anonymous=not who, max_streams=None if limit is None else int(limit))

    upstream = ScriptedUpstream([chunk("Hello"), on.wait, finish()])
    client = await serve(create_app(upstream, auth=hook, max_streams_per_principal=2)[0], headers={})

    async def start(who: str, limit: int | None, times: int) -> list[int]:
        headers = {"X-Who": who} | ({} if limit is None else {"X-Limit": str(limit)})
        return [(await client.post("/v1/streams", json=BODY, headers=headers)).status_code for _ in range(times)]

    assert await start("ann", None, 3) == [201, 201, 429]
    assert await start("ann", 3, 2) == [201, 429]  # counted with those that run
    assert await start("bob", 1, 2) == [201, 429]
    assert await start("cid", 0, 1) == [429]
    assert await start("", None, 3) == [201, 201, 201]
    on.set()


@pytest.mark.parametrize(
    "limits",
    [{"models": "gpt-5"}, {"models": [1]}, {"max_streams": -1}, {"max_streams": "3"}, {"max_streams": True}],
    ids=str,
)
def test_a_principals_limits_are_checked(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="principal's"):
        Principal("ann", **limits)


def test_a_principal_is_a_value() -> None:
    principal = Principal("ann", models=["b", "a"])
    assert principal == Principal("ann", models=frozenset({"a", "b"}))
    assert len({principal, Principal("ann", models={"a", "b"})}) == 1
    assert [principal.may_ask(name) for name in ("a", "c", "")] == [True, False, False]


# A service that acts for a user --------------------------------------------------------------------------------------

SERVICES = bearer_tokens({"token-flask": "flask", "token-cron": "cron"})
FLASK = {"Authorization": "Bearer token-flask"}
CRON = {"Authorization": "Bearer token-cron"}


async def test_a_service_starts_a_stream_that_its_user_reads(create_app: CreateApp, serve: Serve) -> None:
    hook = first_of(on_behalf_of(SERVICES, allowed={"flask"}), session_user())
    app, ai = create_app(ScriptedUpstream("hello"), auth=hook)
    client = await whoami(app, ai, serve, headers={})
    for_ann = {**FLASK, "X-On-Behalf-Of": "42"}
    assert (await client.get("/who", headers=for_ann)).json()["principal"] == "session:42"
    assert (await client.get("/who", headers=FLASK)).json()["principal"] == "token:flask"
    url = (await client.post("/v1/streams", json=BODY, headers=for_ann)).json()["url"]
    ann, bob = session_cookie(_user_id="42"), session_cookie(_user_id="43")
    assert (await read((await client.get(url, headers=ann)).content)).text == "hello"
    assert (await client.get(url, headers=bob)).status_code == 404
    assert (await client.get(url, headers=FLASK)).status_code == 404
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert (await client.delete(url, headers={**ann, **foreign})).status_code == 403
    assert (await client.delete(url, headers=ann)).status_code == 204


async def test_without_the_right_the_header_is_refused(create_app: CreateApp, serve: Serve) -> None:
    hook = on_behalf_of(first_of(SERVICES, session_user()), allowed={"flask"})
    app, ai = create_app(ScriptedUpstream(), auth=first_of(hook, session_user()))
    client = await whoami(app, ai, serve, headers={})
    others = {"X-On-Behalf-Of": "42"}
    # The last one is a user with the same id as the service.
    for headers in (CRON, session_cookie(_user_id="7"), session_cookie(_user_id="flask")):
        assert (await client.get("/who", headers=headers)).status_code == 200
        refused = await client.get("/who", headers={**headers, **others})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    for headers in ({}, {"Authorization": "Bearer nobody"}):
        assert (await client.get("/who", headers={**headers, **others})).status_code == 401


@pytest.mark.parametrize("nobody", [None, False, ""])
async def test_a_service_that_is_not_recognised_cannot_act_for_a_user(
    create_app: CreateApp, serve: Serve, nobody: Any
) -> None:
    async def service() -> Any:
        return nobody

    hook = on_behalf_of(service, allowed=lambda principal: True)
    app, ai = create_app(ScriptedUpstream(), auth=hook)
    client = await whoami(app, ai, serve, headers={})
    assert (await client.get("/who", headers={"X-On-Behalf-Of": "42"})).status_code == 401


async def test_a_cookie_beside_the_header_does_not_stand_in_for_a_service(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream(), auth=first_of(on_behalf_of(SERVICES, allowed={"flask"}), session_user()))
    client = await whoami(app, ai, serve, headers=session_cookie(_user_id="7"))
    assert (await client.get("/who")).json()["principal"] == "session:7"
    assert (await client.get("/who", headers={"X-On-Behalf-Of": "42"})).status_code == 401
    assert (await client.get("/who", headers={**CRON, "X-On-Behalf-Of": "42"})).status_code == 403


USERS = {
    "an id": (["42"], "42"),
    "an address": (["ann@example.org"], "ann@example.org"),
    "with a space": (["ann b"], "ann b"),
    "in UTF-8": (["Zoë".encode().decode("latin-1")], "Zoë"),
    "as long as can be": (["x" * 255], "x" * 255),
    "empty": ([""], None),
    "too long": (["x" * 256], None),
    "a line separator": (["a\u2028b".encode().decode("latin-1")], None),
    "a control character": (["a\x85b".encode().decode("latin-1")], None),
    "a mark that turns a line around": (["a\u202eb".encode().decode("latin-1")], None),
    "a mark of direction": (["a\u200f".encode().decode("latin-1")], None),
    "not UTF-8": (["Zo\xeb"], None),
    "a tab": (["a\tb"], None),
    "two of them": (["42", "43"], None),
}


@pytest.mark.parametrize(("values", "user"), USERS.values(), ids=USERS)
async def test_the_user_is_one_printable_id(
    create_app: CreateApp, serve: Serve, values: list[str], user: str | None
) -> None:
    app, ai = create_app(ScriptedUpstream(), auth=on_behalf_of(SERVICES, allowed=["flask"], realm="users"))
    client = await whoami(app, ai, serve, headers={})
    named = [(b"X-On-Behalf-Of", value.encode("latin-1")) for value in values]
    response = await client.get("/who", headers=[*((k.encode(), v.encode()) for k, v in FLASK.items()), *named])
    if user is None:
        assert (response.status_code, response.json()["error"]["param"]) == (400, "X-On-Behalf-Of")
    else:
        assert response.json() == {"principal": f"users:{user}", "cookie": False, "anonymous": False}


async def test_a_function_decides_who_has_the_right_and_models_are_kept() -> None:
    async def service():
        return Principal("flask", realm=request.headers["X-Realm"], models={"small"}, max_streams=500, cookie=False)

    hook = on_behalf_of(service, allowed=lambda principal: principal.realm == "inside")
    ours = {"X-Realm": "inside", "X-On-Behalf-Of": "42"}
    async with Quart("x").test_request_context("/", headers=ours):
        assert await hook() == Principal("42", realm="session", cookie=False, models={"small"})
    async with Quart("x").test_request_context("/", headers={**ours, "X-Realm": "outside"}):
        with pytest.raises(PermissionDenied):
            await hook()


async def test_an_anonymous_caller_acts_for_nobody(create_app: CreateApp, serve: Serve) -> None:
    hook = on_behalf_of(allow_anonymous(), allowed=lambda principal: True)
    client = await serve(create_app(ScriptedUpstream(), auth=hook)[0], headers={"X-On-Behalf-Of": "42"})
    assert (await client.get("/v1/models")).status_code == 403


async def test_a_coroutine_function_decides_who_has_the_right(create_app: CreateApp, serve: Serve) -> None:
    async def allowed(principal: Principal) -> bool:
        await asyncio.sleep(0)
        return principal.id == "flask"

    app, ai = create_app(ScriptedUpstream(), auth=on_behalf_of(SERVICES, allowed=allowed))
    client = await whoami(app, ai, serve, headers={"X-On-Behalf-Of": "42"})
    assert (await client.get("/who", headers=FLASK)).json()["principal"] == "session:42"
    assert (await client.get("/who", headers=CRON)).status_code == 403


async def test_a_service_may_use_basic_authentication(create_app: CreateApp, serve: Serve) -> None:
    async def service() -> str | None:
        return request.authorization.username if request.authorization else None

    app, ai = create_app(ScriptedUpstream(), auth=on_behalf_of(service, allowed={"flask"}))
    client = await whoami(app, ai, serve, headers={"X-On-Behalf-Of": "42"}, auth=("flask", "secret"))
    assert (await client.post("/who")).json() == {"principal": "session:42", "cookie": False, "anonymous": False}
    assert (await client.post("/who", headers={"Cookie": "user=flask"})).status_code == 403  # it may be the proof


def test_the_ids_of_services_are_a_collection() -> None:
    with pytest.raises(ConfigurationError, match="collection"):
        on_behalf_of(SERVICES, allowed="flask")


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
    "the same name with an underscore": ({"Origin": "http://my_app:5000", "Host": "my_app:5000"}, 200),
    "another name with an underscore": ({"Origin": "http://my_page:5000", "Host": "my_app:5000"}, 403),
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


NO_HOST = ["", ":80", ":5000", "[", "[]", "?", "/", "@", "#a", "app.example:x", "app.example:99999"]


@pytest.mark.parametrize("origin", ["null", "", "file://", "about:blank", "http://:80", "http://[", "http://x:y"])
async def test_an_origin_without_a_host_is_refused_whatever_host_is_asked(
    create_app: CreateApp, serve: Serve, origin: str
) -> None:
    app, _ = create_app(ScriptedUpstream(), auth=session_user())
    client = await serve(app, headers={**session_cookie(_user_id=42), "Origin": origin})
    responses = [await client.post("/v1/streams", json=BODY, headers={"Host": host}) for host in NO_HOST]
    assert [each.status_code for each in responses] == [403] * len(NO_HOST)
    assert {each.json()["error"]["code"] for each in responses} == {"origin_denied"}


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        (
            {"Origin": "https://app.example", "Host": "127.0.0.1:5000"},
            ["Origin is 'https://app.example', and Host is '127.0.0.1:5000'. ", "a proxy has changed Host: "],
        ),
        (
            {"Origin": "https://app.example:8443", "Host": "app.example"},
            ["Origin is 'https://app.example:8443', and Host is 'app.example'. ", "proxy_set_header Host $http_host"],
        ),
        (
            {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
            ["Sec-Fetch-Site is 'cross-site', and Origin is 'https://evil.example'. "],
        ),
        ({"Sec-Fetch-Site": "cross-site"}, ["Sec-Fetch-Site is 'cross-site', and Origin is not sent. "]),
        ({"Origin": "http://" + "x" * 5000}, [f"Origin is 'http://{'x' * 93}...', and Host is "]),
        ({"Origin": "http://\xe9", "Host": "app.example"}, ["Origin is 'http://\\xe9', and Host is 'app.example'. "]),
    ],
    ids=["a changed Host", "a lost port", "a page of another site", "no Origin", "a long Origin", "an odd Origin"],
)
async def test_the_refusal_of_an_origin_names_what_the_server_saw(
    create_app: CreateApp, serve: Serve, headers: dict[str, str], named: list[str]
) -> None:
    app, _ = create_app(ScriptedUpstream(), auth=session_user())
    client = await serve(app, headers=session_cookie(_user_id=42))
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    message = (await client.post("/v1/streams", json=BODY, headers=raw)).json()["error"]["message"]
    assert [part for part in [*named, "add the origin to trusted_origins"] if part not in message] == [], message
    assert ("proxy" in message) == ("Sec-Fetch-Site" not in headers)
    assert message.isprintable()


@pytest.mark.parametrize("how", ["session_user", "session_user with load", "on_behalf_of"])
async def test_a_strangers_page_gets_nowhere_with_any_cookie(create_app: CreateApp, serve: Serve, how: str) -> None:
    hooks = {
        "session_user": session_user(),
        "session_user with load": session_user(load=lambda user: Principal("42", cookie=False)),
        "on_behalf_of": on_behalf_of(session_user(), allowed=lambda principal: True),
    }
    app, ai = create_app(ScriptedUpstream("hello"), auth=hooks[how])
    await refuses_a_strangers_page(await whoami(app, ai, serve, headers=session_cookie(_user_id=42)))


async def refuses_a_strangers_page(client: httpx.AsyncClient) -> None:
    foreign = {"Origin": "https://evil.example"}
    for path in ("/v1/chat/completions", "/v1/streams", "/who"):
        response = await client.post(path, json=BODY, headers=foreign)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "origin_denied")
        assert (await client.post(path, json=BODY)).status_code in (200, 201)


@pytest.mark.parametrize(
    ("scheme", "status"), [("Basic", 403), ("basic", 403), ("Digest", 403), ("Negotiate", 403), ("Bearer", 200)]
)
async def test_what_a_browser_remembers_of_http_authentication_is_like_a_cookie(
    create_app: CreateApp, serve: Serve, scheme: str, status: int
) -> None:
    async def by_header() -> str | None:
        return "ann" if "Authorization" in request.headers else None

    app, ai = create_app(ScriptedUpstream(), auth=by_header)
    client = await whoami(app, ai, serve, headers={"Authorization": f"{scheme} x"})
    for headers, expected in (({"Origin": "https://evil.example"}, status), ({}, 200)):
        assert (await client.post("/who", headers=headers)).status_code == expected
        assert (await client.get("/who", headers=headers)).status_code == 200


async def test_a_token_needs_no_origin(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream())[0])
    response = await client.post(
        "/v1/chat/completions", json=BODY, headers={"Origin": "https://other.example", "Cookie": "x=1"}
    )
    assert response.status_code == 200
    assert isinstance(client, httpx.AsyncClient)
