"""What a process holds, and what becomes of requests when that is too much."""

from __future__ import annotations

import asyncio
import gc
import logging
import tracemalloc
import weakref
from typing import Any

import pytest

from quart_openai_sse import Principal
from quart_openai_sse.errors import InvalidRequest, MemoryFull
from quart_openai_sse.limits import memory
from quart_openai_sse.limits.memory import MemoryAccount
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.requests import body_size, json_size
from quart_openai_sse.testing import Gate, ScriptedUpstream, chunk, finish, read
from tests.conftest import ANN, QUESTION, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}
PRINCIPAL = Principal("ann")
LONG = {**BODY, "messages": [{"role": "user", "content": "x" * 100_000}]}


@pytest.fixture(autouse=True)
def no_engines_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the accounts of engines that earlier tests of the process have left and that are not collected yet."""
    monkeypatch.setattr(memory, "_accounts", ())


class Log:
    size = 0


def test_the_accounts_of_a_process_are_limited_together() -> None:
    one, two = MemoryAccount(100, Log()), MemoryAccount(1000, Log())
    one.bodies, two.unread = 60, 40
    one.check()
    two._log.size = 1
    with pytest.raises(MemoryFull):
        one.check()
    two.check()  # its own limit is higher
    two.close()
    one.check()


BODIES = {
    "text": '{"content":"' + "x" * 200_000 + '"}',
    "objects": '{"x":[' + ",".join(['{"a":1}'] * 20_000) + "]}",
    "lists": '{"x":[' + ",".join(["[1]"] * 20_000) + "]}",
    "floats": '{"x":[' + ",".join(map(str, (number / 7 for number in range(20_000)))) + "]}",
    "long names": "{" + ",".join(f'"{"k" * 40}{number}":{number}' for number in range(5_000)) + "}",
    "Cyrillic": '{"content":"' + "ж" * 100_000 + '"}',
    "Chinese and Latin": '{"content":"字' + "x" * 200_000 + '"}',
    "one emoji": '{"content":"🌙' + "x" * 200_000 + '"}',
    "an escaped emoji": '{"content":"\\ud83c\\udf19' + "x" * 200_000 + '"}',
}


@pytest.mark.parametrize("text", BODIES.values(), ids=BODIES)
def test_a_body_is_counted_for_what_it_takes(text: str) -> None:
    data = text.encode()
    tracemalloc.start()
    try:
        body = json.decode(data)
        takes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert takes * 0.7 < json_size(data) < takes * 6
    assert takes * 0.7 < body_size(body) < takes * 6


@pytest.mark.parametrize("often", [1, 2])
def test_a_body_that_contains_itself_is_refused(often: int) -> None:
    body: dict[str, Any] = {"content": "x"}
    body["self"] = [body] * often
    with pytest.raises(InvalidRequest):
        body_size(body)


async def test_a_running_stream_holds_its_request_and_an_ended_one_nothing(create_app: CreateApp, serve: Serve) -> None:
    gate = Gate()
    app, ai = create_app(ScriptedUpstream([chunk("hi"), gate, finish()]))
    client = await serve(app)
    asking = asyncio.ensure_future(client.post("/v1/chat/completions", json=LONG))
    async with asyncio.timeout(10):
        await gate.reached()
    account = app.extensions["quart_openai_sse"][ai.name].engines.current().memory
    assert 100_000 < account.bodies < 102_000
    gate.open()
    assert (await read((await asking).content)).outcome == "completed"
    async with asyncio.timeout(10):
        while account.held:
            await asyncio.sleep(0)


async def test_beyond_the_limit_a_start_is_a_503_and_running_streams_go_on(create_app: CreateApp, serve: Serve) -> None:
    gate = Gate()
    app, _ = create_app(ScriptedUpstream([chunk("hi"), gate, finish()]), max_memory=150_000)
    client = await serve(app)
    asking = asyncio.ensure_future(client.post("/v1/chat/completions", json=LONG))
    async with asyncio.timeout(10):
        await gate.reached()
    for path in ("/v1/chat/completions", "/v1/streams"):
        for headers in ({}, {"Idempotency-Key": "k"}):
            refused = await client.post(path, json=LONG, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "memory_full")
            assert refused.headers["Retry-After"] == "5"
    gate.open()
    assert (await read((await asking).content)).outcome == "completed"
    assert (await client.post("/v1/streams", json=LONG)).status_code == 201


async def test_what_an_app_starts_is_limited_too(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream("hi"), max_memory=90_000)
    async with app.test_request_context("/", method="POST"):
        with pytest.raises(MemoryFull):
            await ai.start(LONG, principal=PRINCIPAL)
        await ai.complete(BODY, principal=PRINCIPAL)


async def test_a_large_body_is_refused_while_it_arrives(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hi"), max_memory=200_000, max_body=10_000_000)
    client = await serve(app)
    taken = 0

    async def content() -> Any:
        nonlocal taken
        for _ in range(20):
            yield b"x" * 50_000
            taken += 1

    refused = await client.post("/v1/streams", content=content(), headers={**ANN, "Content-Type": "application/json"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "memory_full")
    assert app.extensions["quart_openai_sse"][ai.name].engines.current().memory.held == 0


# Nothing of a request that failed ------------------------------------------------------------------------------------


class Prompt(str):
    """A text that can be watched."""

    __slots__ = ("__weakref__",)


@pytest.fixture
def failing(create_app: CreateApp) -> Any:
    """An app whose requests fail in many ways; for each way the status and the code."""
    upstream = ScriptedUpstream(b'{"error":{"message":"no","code":"bad"}}'.split(b"\n"), status=400)
    app, ai = create_app(upstream, models=("scripted", "later", "never"), max_streams_per_principal=5)

    @ai.model("raises")
    async def raises(chat):
        raise KeyError(chat.body)
        yield

    @ai.model("raises later")
    async def raises_later(chat):
        yield "hi"
        raise KeyError(chat.body)

    @ai.prepare
    async def refuse(body, principal):
        if body["model"] == "never":
            raise MemoryFull(retry_after=1)

    return app, ai, upstream


WAYS = ["scripted", "unknown", "raises", "raises later", "never"]


@pytest.mark.parametrize("key", ["", "k"], ids=["", "with a key"])
@pytest.mark.parametrize("model", WAYS)
async def test_a_request_that_failed_is_not_kept(
    failing: Any, model: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    # pytest keeps what is logged, and with it the exceptions.
    caplog.set_level(logging.CRITICAL + 1, "quart_openai_sse")
    app, ai, upstream = failing
    prompt = Prompt("x" * 1000)
    watched = weakref.ref(prompt)
    async with app.test_request_context("/", method="POST"):
        body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
        del prompt
        try:
            stream = await ai.start(body, principal=PRINCIPAL, idempotency_key=key)
        except Exception as error:
            assert error.status in (404, 503)  # noqa: PT017
            del error
        else:
            async with stream.events() as events:
                *_, last = [item.name async for item in events]
            assert last == "failed"
            assert (await ai.active(thread="", principal=PRINCIPAL)) is None
        del body
    relay = app.extensions["quart_openai_sse"][ai.name].engines.current()
    async with asyncio.timeout(10):
        while relay.streams:
            await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    upstream.requests.clear()
    gc.collect()
    assert watched() is None
    assert relay.memory.bodies == relay.memory.unread == 0
    assert not relay.admission.slots.taken


async def test_a_request_over_the_limit_is_not_kept(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream([Gate()]), max_streams_per_principal=1)
    async with app.test_request_context("/", method="POST"):
        await ai.start(BODY, principal=PRINCIPAL)
        prompt = Prompt("x" * 1000)
        watched = weakref.ref(prompt)
        body = {"model": "scripted", "messages": [{"role": "user", "content": prompt}]}
        del prompt
        for key in ("", "k"):
            with pytest.raises(Exception, match="too many streams"):
                await ai.start(body, principal=PRINCIPAL, idempotency_key=key)
        del body
    gc.collect()
    assert watched() is None
    await app.extensions["quart_openai_sse"][ai.name].engines.aclose()


async def test_an_answer_that_is_put_together_is_counted(create_app: CreateApp, serve: Serve) -> None:
    gate = Gate()
    app, ai = create_app(ScriptedUpstream([chunk("x" * 100_000), gate, finish()]))
    ends = []
    ai.on_end(ends.append)
    client = await serve(app)
    asking = asyncio.ensure_future(client.post("/v1/chat/completions", json={**BODY, "stream": True}))
    async with asyncio.timeout(10):
        await gate.reached()
    account = app.extensions["quart_openai_sse"][ai.name].engines.current().memory
    assert account.bodies > 100_000
    gate.open()
    await asking
    async with asyncio.timeout(10):
        while account.held:
            await asyncio.sleep(0)


async def test_an_answer_that_is_read_whole_is_counted(create_app: CreateApp) -> None:
    gate = Gate()
    app, ai = create_app(ScriptedUpstream([gate]))

    @ai.model("long")
    async def long(chat: Any) -> Any:
        yield "x" * 100_000
        await gate()

    async with app.test_request_context("/", method="POST"):
        asking = asyncio.ensure_future(ai.complete({**BODY, "model": "long"}, principal=PRINCIPAL))
        async with asyncio.timeout(10):
            await gate.reached()
        account = app.extensions["quart_openai_sse"][ai.name].engines.current().memory
        assert account.unread > 100_000
        gate.open()
        assert len((await asking)["content"]) == 100_000
    assert account.unread == 0


async def test_unread_output_is_counted(create_app: CreateApp, serve: Serve) -> None:
    piece = chunk("x" * 100_000)
    app, ai = create_app(ScriptedUpstream([piece] * 200 + [finish()]), max_bytes=1 << 26)
    client = await serve(app)
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    account = app.extensions["quart_openai_sse"][ai.name].engines.current().memory
    async with client.stream("GET", url) as response:  # and not read
        assert response.status_code == 200
        async with asyncio.timeout(20):
            while account.unread < 100_000:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(20):
        while account.unread:
            await asyncio.sleep(0.01)
