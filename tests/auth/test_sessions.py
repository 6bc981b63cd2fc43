"""The users of signed sessions: which values are ids, what `load` may return, and why nobody was recognised."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from quart import Quart
from quart.sessions import SecureCookieSessionInterface

from quart_openai_sse import Principal, session_user
from quart_openai_sse.testing import ScriptedUpstream
from tests.auth.test_hooks import session_cookie, whoami
from tests.conftest import CreateApp, Serve

ID = UUID("8e03978e-40d5-43e8-bc93-6894a57f9324")


async def recognised(hook: Callable[[], Any], headers: dict[str, str], app: Quart | None = None) -> Any:
    """The principal that the hook returns for a request with these headers."""
    if app is None:
        app = Quart("x")
        app.secret_key = "secret"
    async with app.test_request_context("/", headers=headers):
        return await hook()


VALUES: dict[str, tuple[Any, str | None]] = {
    "a text": ("ann", "ann"),
    "a text that is no number": ("0f3a", "0f3a"),
    "an address": ("Zoë@example.org", "Zoë@example.org"),
    "a number": (42, "42"),
    "zero": (0, "0"),
    "a UUID": (ID, str(ID)),
    "as long as can be": ("x" * 255, "x" * 255),
    "None": (None, None),
    "False": (False, None),
    "True": (True, None),
    "an empty text": ("", None),
    "a number with a fraction": (4.2, None),
    "an object": ({"email": "ann@example.org"}, None),
    "an empty object": ({}, None),
    "a list": (["ann"], None),
    "a pair": (("ann", 1), None),
    "bytes": (b"ann", None),
    "a line end": ("ann\nbob", None),
    "another line end": ("ann\u2028bob", None),
    "a control character": ("ann\x85", None),
    "a mark that turns a line around": ("ann\u202ebob", None),
    "a mark of direction": ("ann\u200f", None),
    "an invisible character": ("an\u200bn", None),
    "nothing but a joiner": ("\u200d", None),
    "a Persian word with its joiner": ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0646\u0645",) * 2,
    "a joined emoji": ("\U0001f469\u200d\U0001f4bb",) * 2,
    "a Japanese name with its space": ("\u5c71\u7530\u3000\u592a\u90ce",) * 2,
    "a space that does not break": ("Ann\u00a0Bo",) * 2,
    "joiners beside a line end": ("an\u200dn\nbob", None),
    "too long": ("x" * 256, None),
    "too long a number": (10**255, None),
}


@pytest.mark.parametrize(("value", "expected"), VALUES.values(), ids=VALUES)
async def test_only_an_id_in_the_session_is_a_user(value: Any, expected: str | None) -> None:
    found = await recognised(session_user("user"), session_cookie(user=value))
    assert found == (None if expected is None else Principal(expected, realm="session", cookie=True))


async def test_a_value_that_is_no_id_is_a_401(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream(), auth=session_user("user"))
    client = await whoami(app, ai, serve, headers={})
    for value, status in (("ann", 200), ({"id": 1}, 401), (False, 401), ("a\nb", 401)):
        assert (await client.get("/who", headers=session_cookie(user=value))).status_code == status


@pytest.mark.parametrize("value", [{"email": "ann"}, {}, ["ann"], 4.2, True, "ann\n"], ids=repr)
async def test_load_is_given_whatever_the_session_holds(value: Any) -> None:
    given = []

    async def load(value: Any) -> str:
        given.append(value)
        return "ann"

    hook = session_user("user", load=load)
    assert await recognised(hook, session_cookie(user=value)) == Principal("ann", realm="session", cookie=True)
    for nobody in (None, False, ""):
        assert await recognised(hook, session_cookie(user=nobody)) is None
    assert given == [value]


@pytest.mark.parametrize("loaded", ["", "ann\n", "ann\u2066", "x" * 256, 10**255, None, False], ids=ascii)
async def test_an_id_from_load_is_checked_too(loaded: Any) -> None:
    async def load(value: Any) -> Any:
        return loaded

    assert await recognised(session_user("user", load=load), session_cookie(user="ann")) is None


async def test_load_may_return_a_uuid() -> None:
    async def load(value: Any) -> UUID:
        return ID

    found = await recognised(session_user("user", load=load), session_cookie(user="ann"))
    assert found == Principal(str(ID), realm="session", cookie=True)


@pytest.mark.parametrize("value", [{"email": "ann"}, ["ann"], 4.2, True], ids=repr)
async def test_load_cannot_accept_a_value_that_is_no_id_as_it_is(value: Any) -> None:
    async def load(value: Any) -> bool:
        return True

    with pytest.raises(TypeError, match=f"not an id .{type(value).__name__}.*must return an id or a Principal"):
        await recognised(session_user("user", load=load), session_cookie(user=value))


async def test_an_invalid_id_beside_a_load_that_accepts_everything_is_nobody() -> None:
    async def load(value: Any) -> bool:
        return True

    assert await recognised(session_user("user", load=load), session_cookie(user="ann\nbob")) is None


# Why nobody was recognised -------------------------------------------------------------------------------------------


def no_secret(app: Quart) -> None:
    app.secret_key = None


def other_secret(app: Quart) -> None:
    app.secret_key = "another secret"


def at_once_expired(app: Quart) -> None:
    app.permanent_session_lifetime = timedelta(seconds=-1)


class OtherSessions(SecureCookieSessionInterface):
    """Sessions whose cookie is signed in another way."""

    salt = "another salt"


def other_salt(app: Quart) -> None:
    app.session_interface = OtherSessions()


def as_it_is(app: Quart) -> None:
    pass


def cookie(value: str) -> dict[str, str]:
    return {"Cookie": f"session={value}"}


UNREADABLE = (
    "the cookie 'session' cannot be read: it was signed with another SECRET_KEY or salt, "
    "or it is only the key of a session on a server"
)
REASONS: dict[str, tuple[dict[str, str], Callable[[Quart], None], str]] = {
    "no cookie": ({}, as_it_is, "the request has no cookie 'session'"),
    "another cookie": ({"Cookie": "other=canary"}, as_it_is, "the request has no cookie 'session'"),
    "no secret key": (
        session_cookie(user="canary"),
        no_secret,
        "the app has no sessions, because it has no SECRET_KEY",
    ),
    "another secret key": (session_cookie(user="canary"), other_secret, UNREADABLE),
    "another salt": (session_cookie(user="canary"), other_salt, UNREADABLE),
    "the key of a session on a server": (cookie("canary-4f1c"), as_it_is, UNREADABLE),
    "expired": (session_cookie(user="canary"), at_once_expired, "the cookie 'session' has expired"),
    "another key": (session_cookie(other="canary"), as_it_is, "the session has no 'user'"),
    "an empty value": (
        session_cookie(user="", other="canary"),
        as_it_is,
        "the session's 'user' is None, False or empty",
    ),
    "an object": (session_cookie(user={"a": "canary"}), as_it_is, "'user' is not an id, but of the type dict"),
    "True": (session_cookie(user=True), as_it_is, "'user' is not an id, but of the type bool"),
    "a line end": (
        session_cookie(user="canary\n"),
        as_it_is,
        "'user' is not a text of 1 to 255 printable characters",
    ),
}


@pytest.mark.parametrize(("headers", "change", "why"), REASONS.values(), ids=REASONS)
async def test_a_debug_line_says_why_nobody_was_recognised(
    headers: dict[str, str], change: Callable[[Quart], None], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Quart("x")
    app.secret_key = "secret"
    change(app)
    for level, said in (("INFO", []), ("DEBUG", [f"session_user: no user was recognised: {why}"])):
        caplog.clear()
        caplog.set_level(level, "quart_openai_sse")
        assert await recognised(session_user("user"), headers, app) is None
        assert [record.getMessage() for record in caplog.records if record.name == "quart_openai_sse"] == said
        assert "canary" not in repr([vars(record) for record in caplog.records])


@pytest.mark.parametrize(
    ("loaded", "why"),
    [
        (None, "load returned None"),
        (False, "load returned False"),
        ("canary\n", "what load returned is not a text of 1 to 255 printable characters"),
    ],
)
async def test_a_debug_line_says_what_load_returned(loaded: Any, why: str, caplog: pytest.LogCaptureFixture) -> None:
    async def load(value: Any) -> Any:
        return loaded

    caplog.set_level("DEBUG", "quart_openai_sse")
    assert await recognised(session_user("user", load=load), session_cookie(user="canary")) is None
    assert [record.getMessage() for record in caplog.records if record.name == "quart_openai_sse"] == [
        f"session_user: no user was recognised: {why}"
    ]
