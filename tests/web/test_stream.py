"""A stream in the app's own routes: where its response begins, and what must not be done with it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from quart import Quart, request

from quart_openai_sse import QuartOpenAISSE
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read
from tests.conftest import QUESTION, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION}


@pytest.fixture
def app_with_routes(create_app: CreateApp) -> tuple[Quart, QuartOpenAISSE, asyncio.Event]:
    """An app with routes of its own for a stream that waits, before its end, until the event is set."""
    gate = asyncio.Event()
    app, ai = create_app(ScriptedUpstream([chunk("one"), chunk(" two"), gate.wait, chunk(" three"), finish()]))

    @app.post("/ask")
    async def ask() -> Any:
        stream = await ai.start(await ai.body(), principal=await ai.principal(), thread="t")
        return {"id": stream.id}

    @app.get("/answer")
    async def answer() -> Any:
        stream = await ai.active(thread="t", principal=await ai.principal())
        assert stream is not None
        after = {"after": request.args["after"]} if "after" in request.args else {}
        return await stream.response(format=request.args.get("format", "text"), **after)

    return app, ai, gate


async def rest(client: httpx.AsyncClient, gate: asyncio.Event, **options: Any) -> str:
    """The text of what is left of the answer."""
    async with client.stream("GET", "/answer", **options) as response:
        gate.set()
        return (await read(response.aiter_raw())).text


async def test_a_response_of_ones_own_begins_behind_the_requests_last_event_id(
    app_with_routes: tuple[Quart, QuartOpenAISSE, asyncio.Event], serve: Serve
) -> None:
    app, _, gate = app_with_routes
    client = await serve(app)
    header, parameter = {"headers": {"Last-Event-ID": "1"}}, {"params": {"last_event_id": "2"}}
    ways: list[tuple[dict[str, Any], str]] = [
        ({}, "one two three"),
        (header, " two three"),
        (parameter, " three"),
        (header | parameter, " two three"),
        (header | {"params": {"format": "openai"}}, " two three"),
        (header | {"params": {"after": ""}}, "one two three"),
        (header | {"params": {"after": "2"}}, " three"),
    ]
    got = []
    for options, _ in ways:
        gate.clear()
        await client.post("/ask", json=BODY)
        while (await client.get("/v1/streams")).json()["data"] == []:
            await asyncio.sleep(0)
        got.append(await rest(client, gate, **options))
    assert got == [expected for _, expected in ways]


async def test_a_client_that_has_the_end_gets_a_204_from_ones_own_route_too(
    create_app: CreateApp, serve: Serve
) -> None:
    app, ai = create_app(ScriptedUpstream("hello"))
    streams = {}

    @app.post("/ask")
    async def ask() -> Any:
        stream = await ai.start(await ai.body(), principal=await ai.principal())
        streams["latest"] = stream
        return await stream.response()

    @app.get("/answer")
    async def answer() -> Any:
        return await streams["latest"].response()

    client = await serve(app)
    first = await client.post("/ask", json=BODY)
    assert (await read(first.content)).text == "hello"
    ended = await client.get("/answer", headers={"Last-Event-ID": "end"})
    assert (ended.status_code, ended.content) == (204, b"")
    assert ended.headers["content-type"].startswith(
        "text/event-stream"
    )  # or EventSource would tell the page of an error
    refused = await client.get("/answer", headers={"Last-Event-ID": "99"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_last_event_id")
    relay = app.extensions["quart_openai_sse"][ai.name].engines.current()
    assert len(relay.readers) == 0


async def test_a_head_request_does_not_wait_for_the_stream(
    app_with_routes: tuple[Quart, QuartOpenAISSE, asyncio.Event], serve: Serve
) -> None:
    app, ai, gate = app_with_routes
    client = await serve(app)
    started = (await client.post("/ask", json=BODY)).json()
    head = await client.head("/answer")
    assert (head.status_code, head.headers["x-stream-id"]) == (200, started["id"])
    assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert not app.extensions["quart_openai_sse"][ai.name].engines.current().readers
    assert await rest(client, gate) == "one two three"


async def test_a_stream_is_not_iterated_over_without_a_context(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hello"))

    @app.post("/ask")
    async def ask() -> Any:
        stream = await ai.start(BODY, principal=await ai.principal())
        with pytest.raises(TypeError) as raised:
            async for _ in stream:
                pass
        return str(raised.value)

    told = (await (await serve(app)).post("/ask")).text
    assert told == "A Stream can't be iterated over: write `async with stream.events() as events:` first."
