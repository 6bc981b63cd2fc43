"""A log that cannot store the end of a stream: each reader of the stream is told that it has failed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs import About, End, Writer
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.testing import Gate, ScriptedUpstream, Step, chunk, finish, read
from tests.conftest import QUESTION, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION}
AS_STREAM = {"Accept": "text/event-stream"}


class WithoutEnds(MemoryLog):
    """A log whose writers raise *error* in `close`."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def create(self, key: str, *, about: About, digest: str, retain: bool) -> Writer | None:
        async def close(end: End) -> None:
            raise self._error

        writer = await super().create(key, about=about, digest=digest, retain=retain)
        writer.close = close
        return writer


Connect = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture(params=[LogUnavailable(), OSError("The disk is full.")], ids=["unavailable", "another error"])
def connect(request: pytest.FixtureRequest, create_app: CreateApp, serve: Serve) -> Connect:
    """Connects to an app whose log stores no end. There are no heartbeats: what waits for an end fails soon."""

    async def connect(*script: Step) -> httpx.AsyncClient:
        upstream = ScriptedUpstream(script or "Hello there.")
        app, ai = create_app(upstream, log=lambda _: WithoutEnds(request.param), keepalive=0)

        @app.get("/events")
        async def events() -> Any:
            stream = await ai.start(BODY, principal=await ai.principal())
            async with stream.events() as items:
                *_, last = [item async for item in items]
            return {"name": last.name, "id": last.id, "code": last.data["error"]["code"]}

        @app.get("/complete")
        async def complete() -> Any:
            return await ai.complete(BODY, principal=await ai.principal())

        client: httpx.AsyncClient = await serve(app)
        client.timeout = 10
        return client

    return connect


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("/v1/chat/completions", {}),
        ("/v1/streams", AS_STREAM),
        ("/v1/streams?format=openai", AS_STREAM),
    ],
    ids=["openai, passing", "text, kept", "openai, kept"],
)
async def test_a_streamed_response_ends_as_failed(connect: Connect, url: str, headers: dict[str, str]) -> None:
    client = await connect()
    response = await client.post(url, json={**BODY, "stream": True}, headers=headers)
    stream = await read(response.content)
    assert (response.status_code, stream.text, stream.outcome) == (200, "Hello there.", "failed")
    assert stream.error["code"] == "log_unavailable"


async def test_every_reader_of_a_stream_is_told(connect: Connect) -> None:
    gate = Gate()
    client = await connect(chunk("Hello"), gate, chunk(" there."), finish())
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    await gate.reached()
    async with client.stream("GET", url) as one, client.stream("GET", url, headers={"Last-Event-ID": "1"}) as other:
        gate.open()
        streams = [await read(response.aiter_raw()) for response in (one, other)]
    assert [(each.text, each.outcome, each.error["code"]) for each in streams] == [
        ("Hello there.", "failed", "log_unavailable"),
        (" there.", "failed", "log_unavailable"),
    ]


@pytest.mark.parametrize("way", ["not streamed", "ai.complete"])
async def test_an_answer_in_one_piece_is_a_503(connect: Connect, way: str) -> None:
    client = await connect()
    method, url = ("GET", "/complete") if way == "ai.complete" else ("POST", "/v1/chat/completions")
    response = await client.request(method, url, json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "log_unavailable")


async def test_the_last_item_of_the_events_is_the_failure(connect: Connect) -> None:
    client = await connect()
    assert (await client.get("/events")).json() == {"name": "failed", "id": "end", "code": "log_unavailable"}
