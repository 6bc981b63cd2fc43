"""The trace id that goes through, and the line that is written per response."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from hypercorn.utils import is_asgi
from quart import Quart, Response

from quart_openai_sse import Principal, QuartOpenAISSE, allow_anonymous, current_trace_id
from quart_openai_sse.formats import BaseFormat
from quart_openai_sse.logs import Batch, End
from quart_openai_sse.protocol.trace_context import TraceIdFilter
from quart_openai_sse.simulator import Simulator
from quart_openai_sse.testing import ScriptedUpstream, chunk
from quart_openai_sse.web.middleware import BodyLimit, StreamLoggingMiddleware
from tests.conftest import ANN, QUESTION, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "quart_openai_sse.response"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, TRACE),
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "X-Trace-ID": "other"}, TRACE),
        ({"X-Trace-ID": "mine-1.2_3"}, "mine-1.2_3"),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": "garbage"}, None),
        ({"X-Trace-ID": "spaces are not ids"}, None),
        ({"X-Trace-ID": "x" * 65}, None),
        ({}, None),
    ],
)
async def test_a_valid_trace_id_is_taken_and_echoed_or_a_new_one_made(
    create_app: CreateApp, serve: Serve, headers: dict[str, str], expected: str | None
) -> None:
    app, _ = create_app(ScriptedUpstream())
    inside = []

    @app.get("/own")
    async def own():
        inside.append(current_trace_id())
        return "mine"

    client = await serve(app)
    for path in ("/v1/models", "/own"):
        response = await client.get(path, headers=headers)
        got = response.headers["x-trace-id"]
        assert got == expected if expected else re.fullmatch(r"[0-9a-f]{32}", got)
    assert inside == [got]


async def test_the_trace_id_goes_upstream_and_onto_every_record(
    create_app: CreateApp, serve: Serve, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quart_openai_sse")
    caplog.handler.addFilter(TraceIdFilter())
    app, ai = create_app(base_url=simulator.base_url)
    app.logger.setLevel(logging.INFO)

    @ai.model("own")
    async def own(chat):
        app.logger.info("in the model")
        async for each in chat.call("sim-fast", chat.messages):
            yield each

    client = await serve(app)
    await client.post("/v1/chat/completions", json={**BODY, "model": "own"}, headers={"X-Trace-ID": "trace-7"})
    assert simulator.counters.requests[0].headers["x-trace-id"] == "trace-7"
    while not lines(caplog):
        await asyncio.sleep(0)
    names = ("quart_openai_sse.stream", "quart_openai_sse.response", app.logger.name)
    ours = [record for record in caplog.records if record.name in names]
    assert {record.name for record in ours} == set(names)
    assert "in the model" in caplog.text
    assert {record.trace_id for record in ours} == {"trace-7"}


def body_of(size: int) -> bytes:
    """A request of *size* bytes."""
    return json.dumps(BODY).encode().ljust(size)


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "target",
    [
        "//v1/chat/completions",
        "///v1/chat/completions",
        "/%2Fv1/chat/completions",
        "http://a/v1/chat/completions",
        "http://a//v1/chat/completions",
    ],
)
async def test_a_path_that_quart_reads_as_ours_passes_the_same_checks(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    caplog.set_level(logging.INFO, "quart_openai_sse.response")
    app, _ = create_app(ScriptedUpstream("hello"), max_body=2000)
    app.config["MAX_CONTENT_LENGTH"] = 1000  # the limit of other routes
    client = await serve(app, headers=JSON)
    target = {"target": target.encode()}
    for size, headers, status in ((1500, ANN, 200), (2001, ANN, 413), (2001, {}, 401)):
        response = await client.post("/", content=body_of(size), headers=headers, extensions=target)
        assert response.status_code == status
    while len(lines(caplog)) < 3:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("root_path", "path"),
    [
        ("/old", "/old/v1/chat/completions"),
        ("/old", "/old//v1/chat/completions"),
        ("/old", "/oldv1/chat/completions"),
        ("/old/", "/old/v1/chat/completions"),
        ("/v1", "/v1/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
    ],
)
async def test_below_a_path_of_the_servers_the_checks_are_the_same(
    create_app: CreateApp, root_path: str, path: str
) -> None:
    app, _ = create_app(ScriptedUpstream("hello"), max_body=2000)
    app.config["MAX_CONTENT_LENGTH"] = 1000
    transport = httpx.ASGITransport(app=app, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://a", headers={**ANN, **JSON}) as client:
        assert (await client.post(path, content=body_of(1500))).status_code == 200
        assert (await client.post(path, content=body_of(2001))).status_code == 413


PREFIXES_OF = {
    "/ai/": "/ai",
    "/": "",
    "/t/<tenant>/ai": "/t/acme/ai",
    "/<int:tenant>": "/42",
    "/<path:tenant>/ai": "/a/b/ai",
}


@pytest.mark.parametrize(("url_prefix", "below"), PREFIXES_OF.items())
async def test_below_every_prefix_the_checks_and_log_lines_are_the_same(
    serve: Serve, caplog: pytest.LogCaptureFixture, url_prefix: str, below: str
) -> None:
    caplog.set_level(logging.INFO, "quart_openai_sse.response")
    app = Quart(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 1000
    upstream = ScriptedUpstream("hello")
    ai = QuartOpenAISSE(app, auth=allow_anonymous(), upstream=lambda config: upstream, routes=(), max_body=2000)
    app.register_blueprint(ai.blueprint("other", url_prefix=url_prefix))

    @app.url_value_preprocessor
    def take_tenant(_: Any, values: Any) -> None:
        values.pop("tenant", None)

    client = await serve(app, headers=JSON)
    for size, status in ((1500, 200), (2001, 413)):
        assert (await client.post(f"{below}/chat/completions", content=body_of(size))).status_code == status
    while len(lines(caplog)) < 2:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "path", ["/V1/models", "/v1/models/", "/x/../v1/models", "/x/%2e%2e/v1/models", "/v1%00/models", "/v1;x/models"]
)
async def test_a_path_that_is_only_similar_is_a_404(create_app: CreateApp, serve: Serve, path: str) -> None:
    client = await serve(create_app(ScriptedUpstream())[0])
    assert (await client.get("/", extensions={"target": path.encode()})).status_code == 404


async def test_one_line_per_response_of_ours(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quart_openai_sse.response")
    app, _ = create_app(ScriptedUpstream("hello"))

    @app.get("/own")
    async def own():
        return "not ours"

    @app.get("/feed")
    async def feed():
        return Response("data: x\n\n", mimetype="text/event-stream")

    client = await serve(app)
    streamed = await client.post("/v1/chat/completions?secret=1", json=BODY)
    await client.get("/own")
    await client.get("/v1/nothing")
    await client.get("/feed")
    while len(lines(caplog)) < 3:
        await asyncio.sleep(0)
    first, second, third = lines(caplog)
    assert (first.response_method, first.response_path) == ("POST", "/v1/chat/completions")
    assert (first.response_status, first.response_bytes) == (200, len(streamed.content))
    assert 0 < first.response_time_to_first_byte <= first.response_duration
    assert first.response_client_left is False
    assert "secret" not in first.getMessage()
    assert (second.response_path, second.response_status) == ("/v1/nothing", 404)
    assert third.response_path == "/feed"
    await client.get("/v1/%0aforged%20line")
    while len(lines(caplog)) < 4:
        await asyncio.sleep(0)
    assert "\n" not in lines(caplog)[3].getMessage()


async def test_a_stream_in_the_apps_own_route_and_format_gets_its_line(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quart_openai_sse.response")
    app, ai = create_app(ScriptedUpstream("hello"))

    @ai.format("lines")
    class Lines(BaseFormat):
        headers: Mapping[str, str] = {"Content-Type": "text/plain"}

        def encode(self, batch: Batch) -> bytes:
            return b"".join(entry.data + b"\n" for entry in batch.entries)

        def end(self, end: End) -> bytes:
            return end.outcome.encode()

    @app.get("/ask")
    async def ask():
        stream = await ai.start({"messages": QUESTION}, principal=Principal("ann"))
        return await stream.response(format="lines")

    response = await (await serve(app)).get("/ask")
    assert response.text.endswith("completed")
    while not lines(caplog):
        await asyncio.sleep(0)
    [line] = lines(caplog)
    assert (line.response_path, line.response_bytes) == ("/ask", len(response.content))


async def test_a_client_that_left_is_in_the_line(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quart_openai_sse.response")
    forever = asyncio.Event()
    client = await serve(create_app(ScriptedUpstream([chunk("hi"), forever.wait]))[0])
    async with client.stream("POST", "/v1/chat/completions", json=BODY) as response:
        await anext(response.aiter_raw())
    while not lines(caplog):
        await asyncio.sleep(0)
    [line] = lines(caplog)
    assert line.response_client_left is True
    assert line.getMessage().endswith("client left")


async def test_the_middleware_can_be_switched_off(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quart_openai_sse.response")
    client = await serve(create_app(ScriptedUpstream(), log_responses=False)[0])
    response = await client.post("/v1/chat/completions", json=BODY)
    assert "x-trace-id" not in response.headers
    assert not lines(caplog)


async def test_observers_are_told_in_the_context_of_the_stream_over_a_kept_connection_too(
    create_app: CreateApp, serve: Serve, simulator: Simulator
) -> None:
    """What arrives on it is read in the context of the request that opened it."""
    app, ai = create_app(base_url=simulator.base_url)
    told = []
    ended = asyncio.Event()

    @ai.observe
    async def note(event):
        told.append((event.kind, event.record.trace_id, current_trace_id()))
        if event.kind == "ended":
            ended.set()

    # A stream must have waited for its first chunk, or it is given what has come by itself.
    body = {"model": "sim-length-3-rate-100-delay-0.05", "messages": QUESTION, "stream": True}
    client = await serve(app)
    for name in ("one", "two"):
        await client.post("/v1/chat/completions", json=body, headers={"x-trace-id": f"trace-{name}"})
        await ended.wait()
        ended.clear()
    assert [(kind, trace) for kind, trace, _ in told] == [
        (kind, trace) for trace in ("trace-one", "trace-two") for kind in ("started", "first_chunk", "ended")
    ]
    assert all(now == of_the_stream for _, of_the_stream, now in told)


BODY_MESSAGE = {"type": "http.response.body", "body": b"ok"}


@pytest.mark.parametrize(
    ("messages", "left"),
    {
        "whole": ([BODY_MESSAGE], False),
        "in pieces": ([{**BODY_MESSAGE, "more_body": True}, {"type": "http.response.body"}], False),
        "with trailers": ([BODY_MESSAGE, {"type": "http.response.trailers", "headers": []}], False),
        "cut": ([{**BODY_MESSAGE, "more_body": True}], True),
        "cut at once": ([], True),
    }.values(),
)
async def test_whether_a_client_left_is_a_matter_of_the_body(
    caplog: pytest.LogCaptureFixture, messages: list[dict[str, object]], left: bool
) -> None:
    caplog.set_level(logging.INFO, "quart_openai_sse")

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for message in messages:
            await send(message)

    async def send(message):
        pass

    scope = {"type": "http", "method": "GET", "path": "/v1/x", "headers": []}
    await StreamLoggingMiddleware(app, prefixes=["/v1"])(scope, None, send)  # type: ignore[arg-type]
    [line] = lines(caplog)
    assert line.response_client_left is left
    assert line.response_bytes == sum(len(message.get("body", b"")) for message in messages)


@pytest.mark.parametrize("log_responses", [True, False])
def test_servers_see_that_the_app_is_asgi(create_app: CreateApp, log_responses: bool) -> None:
    app, _ = create_app(ScriptedUpstream(), log_responses=log_responses)
    assert is_asgi(app.asgi_app)


async def test_openais_request_id_is_on_the_responses_of_our_routes_and_on_no_others(serve: Serve) -> None:
    app = Quart(__name__)
    ai = QuartOpenAISSE(app, auth=allow_anonymous(), base_url="http://127.0.0.1:9/v1")
    app.register_blueprint(ai.blueprint("tenants", url_prefix="/t/<tenant>/ai", routes={"health"}))

    @app.url_value_preprocessor
    def take_tenant(_: Any, values: Any) -> None:
        if values:
            values.pop("tenant", None)

    @app.get("/v1/mine")
    async def mine() -> str:
        return "mine"

    client = await serve(app, headers={})
    for path, ours in (("/v1/health", True), ("/t/acme/ai/health", True), ("/v1/no", True), ("/v1/mine", False)):
        response = await client.get(path)
        assert ("x-request-id" in response.headers, "x-trace-id" in response.headers) == (ours, True), path


LIMITED = {"type": "http", "method": "POST", "path": "/v1/streams"}
ROOTED = {**LIMITED, "path": "/app/v1/streams", "root_path": "/app"}
PARTS = (8, 8, 8, 8)
BODIES_OF = {
    "ours": (LIMITED, [8, 8, 0, 0]),
    "ours below a root path": (ROOTED, [8, 8, 0, 0]),
    "another method": ({**LIMITED, "method": "PUT"}, list(PARTS)),
    "another path": ({**LIMITED, "path": "/v1/upload"}, list(PARTS)),
    "a websocket": ({"type": "websocket", "path": "/v1/streams"}, list(PARTS)),
    "no request": ({"type": "lifespan"}, list(PARTS)),
}


@pytest.mark.parametrize(("scope", "expected"), BODIES_OF.values(), ids=BODIES_OF)
async def test_a_body_beyond_the_limit_is_discarded_as_it_arrives(scope: Any, expected: list[int]) -> None:
    """Quart is told to buffer the body without a limit: what passes here is held in memory."""
    messages = [{"type": "http.request", "body": b"x" * size, "more_body": True} for size in PARTS]
    messages.append({"type": "http.disconnect"})
    received: list[Any] = []

    async def receive() -> Any:
        return dict(messages[len(received)])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while len(received) < len(messages):
            received.append(await receive())

    async def send(message: Any) -> None:
        raise AssertionError

    await BodyLimit(app, prefixes={"/v1"}, paths={"/streams"}, limit=10)(dict(scope), receive, send)
    assert [len(message.get("body", b"")) for message in received] == [*expected, 0]
    assert [message["type"] for message in received] == ["http.request"] * 4 + ["http.disconnect"]
    assert all(message["more_body"] for message in received[:4])
