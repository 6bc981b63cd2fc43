"""Options of seconds: which of them may be 0, and what 0 does then."""

from __future__ import annotations

import ast
import asyncio
import inspect
import time
from dataclasses import fields

import pytest

from quart_openai_sse import config
from quart_openai_sse.config import Config
from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read, refused
from quart_openai_sse.upstreams.breaker import Breaker, CallResult
from tests.conftest import QUESTION, CreateApp, Serve
from tests.raw import Peer, raw_upstream

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}

SECONDS = {each.name: str(each.type) for each in fields(Config) if "Seconds" in str(each.type)}
MAY_BE_ZERO = {name for name, type_ in SECONDS.items() if type_ == "Seconds"}
TESTED = {
    "retry_delay",
    "retry_after_max",
    "breaker_reset",
    "keepalive_expiry",
    "commit_after",
    "keepalive",
    "linger",
    "retention",
    "tombstone",
}
"""By the tests below, and retry_delay, commit_after, linger and retention by many others."""


def meanings() -> dict[str, str]:
    """The docstrings of the options."""
    [cls] = ast.parse(inspect.getsource(config.Config)).body
    assert isinstance(cls, ast.ClassDef)
    return {
        field.target.id: ast.literal_eval(text.value)
        for field, text in zip(cls.body, cls.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
    }


def test_an_option_says_what_0_means_or_does_not_accept_it() -> None:
    assert {name for name, text in meanings().items() if " 0: " in " ".join(text.split())} == MAY_BE_ZERO == TESTED


@pytest.mark.parametrize("name", sorted(SECONDS.keys() - MAY_BE_ZERO))
def test_a_time_limit_of_0_is_refused(create_app: CreateApp, name: str) -> None:
    for value in (0, 0.0, "0"):
        value = {"any": value} if SECONDS[name].startswith("Mapping") else value
        with pytest.raises(ConfigurationError, match=rf"^OPENAI_SSE_{name.upper()}: Expected `float` > 0\.0"):
            create_app(ScriptedUpstream(), **{name: value})


@pytest.mark.parametrize(("keepalive", "comments"), [(0, False), (15, True)])
async def test_without_a_keepalive_no_comment_is_sent_in_a_silence(
    create_app: CreateApp, serve: Serve, monkeypatch: pytest.MonkeyPatch, keepalive: float, comments: bool
) -> None:
    ahead, gate = 0.0, asyncio.Event()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: time.monotonic() + ahead)
    app, _ = create_app(ScriptedUpstream([chunk("one"), gate.wait, chunk(" two"), finish()]), keepalive=keepalive)
    client = await serve(app)
    async with client.stream("POST", "/v1/chat/completions", json=BODY) as response:
        received = response.aiter_raw()
        data = await anext(received)
        ahead = 20.0
        while comments and b"\n:" not in data:
            data += await anext(received)
        gate.set()
        data += b"".join([each async for each in received])
    assert (await read(data)).text == "one two"
    assert (b"\n:" in data) is comments


async def test_without_a_tombstone_an_expired_stream_is_unknown(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream(), retention=0, tombstone=0)[0])
    response = await client.post("/v1/streams", json=BODY, headers={"Accept": "text/event-stream"})
    gone = await client.get(f"/v1/streams/{response.headers['x-stream-id']}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "stream_not_found")


@pytest.mark.parametrize(("retry_after", "requests"), [(None, 2), (1, 1)])
async def test_with_a_retry_after_max_of_0_no_retry_after_is_waited_for(
    create_app: CreateApp, serve: Serve, retry_after: int | None, requests: int
) -> None:
    upstream = ScriptedUpstream([refused(503, retry_after=retry_after)], "hello")
    app, _ = create_app(upstream, retries=1, retry_delay=0, retry_after_max=0)
    response = await (await serve(app)).post("/v1/chat/completions", json=BODY)
    assert (response.status_code, len(upstream.requests)) == (200 if requests == 2 else 503, requests)


def test_with_a_breaker_reset_of_0_the_next_request_is_the_probe() -> None:
    breaker = Breaker(failures=1, reset=0)
    breaker.enter(5.0)
    breaker.leave(CallResult.FAILURE, 5.0)
    assert breaker.admits(5.0)
    breaker.enter(5.0)
    assert not breaker.admits(5.0)


@pytest.mark.parametrize("own_transport", [True, False])
async def test_with_a_keepalive_expiry_of_0_no_connection_stays_open(
    create_app: CreateApp, serve: Serve, own_transport: bool
) -> None:
    data = chunk("hello") + finish()

    async def answer(peer: Peer) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
        await peer.send(head % len(data) + data)

    async with raw_upstream(answer) as upstream:
        options = {"base_url": upstream.base_url, "keepalive_expiry": 0, "own_transport": own_transport}
        client = await serve(create_app(None, **options)[0])
        for _ in range(3):
            response = await client.post("/v1/chat/completions", json=BODY)
            assert (await read(response.content)).text == "hello"
        assert upstream.connections == 3
