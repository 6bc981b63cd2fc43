"""The transport through which a library's client asks the app's own routes: what it sees, and who it is."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from threading import Event
from typing import Any

import httpx
import httpx2
import openai
import pytest
from quart import Blueprint, Quart, current_app, g, request

from quart_openai_sse import Principal, QuartOpenAISSE, allow_anonymous, bearer_tokens, current_trace_id
from quart_openai_sse.auth.authentication import waits
from quart_openai_sse.auth.in_process import CALLER, admit
from quart_openai_sse.errors import (
    ConfigurationError,
    FirstOutputTimeout,
    StreamStopped,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from quart_openai_sse.functions import name_of
from quart_openai_sse.protocol.sse import encode_data
from quart_openai_sse.protocol.trace_context import reset_trace_id, set_trace_id
from quart_openai_sse.simulator import Simulator
from quart_openai_sse.testing import Gate, ScriptedUpstream, chunk, error, finish, read, refused
from quart_openai_sse.web import exchange, in_process
from tests.conftest import QUESTION, TOKENS, CreateApp, Serve

ANN = Principal("ann", realm="token")
BASE_URL = "http://app/v1"
BODY = {"model": "agent", "messages": QUESTION, "stream": True}
ASKED = {"model": "scripted", "messages": QUESTION, "stream": True}
LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
DONE = encode_data(b"[DONE]")


def sdk(transport: Any, library: Any = httpx2, **options: Any) -> openai.AsyncOpenAI:
    """OpenAI's SDK, with this transport in place of the network."""
    client = library.AsyncClient(transport=transport)
    return openai.AsyncOpenAI(
        **{"base_url": BASE_URL, "api_key": "sk-dummy", "max_retries": 0, "http_client": client, **options}
    )


def text_model(ai: QuartOpenAISSE, library: Any = httpx2, model: str = "scripted") -> None:
    """Registers a model that yields the text which OpenAI's SDK reads, and nothing about its end."""

    @ai.model("agent")
    async def agent(chat):
        async with sdk(ai.transport(principal=chat.principal), library) as client:
            stream = await client.chat.completions.create(model=model, messages=chat.messages, stream=True)
            async for piece in stream:
                if piece.choices and piece.choices[0].delta.content:
                    yield piece.choices[0].delta.content


@asynccontextmanager
async def client_of(app: Quart, ai: QuartOpenAISSE, principal: Principal = ANN, **options: Any):
    """A client of httpx that asks *app* outside of any request."""
    transport = ai.transport(principal=principal, app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app", **options) as client:
        yield client


async def turns(number: int = 50) -> None:
    """Lets every task run on as far as it can."""
    for _ in range(number):
        await asyncio.sleep(0)


async def pass_time(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the event loop's clock run on by *seconds*, and what is due happen, without waiting for it."""
    loop = asyncio.get_running_loop()
    begun, time = loop.time(), loop.time
    for step in range(1, 101):
        monkeypatch.setattr(loop, "time", lambda passed=step * seconds / 100: max(time(), begun + passed))
        await turns(3)
    monkeypatch.setattr(loop, "time", time)


# What the library sees --------------------------------------------------------------------------------------------


@LIBRARIES
async def test_a_library_reads_a_whole_answer(create_app: CreateApp, serve: Serve, library: Any) -> None:
    upstream = ScriptedUpstream("The moon is far.")
    app, ai = create_app(upstream)
    text_model(ai, library)
    response = await (await serve(app)).post("/v1/chat/completions", json=BODY)
    seen = await read(response.content)
    assert (seen.text, seen.outcome) == ("The moon is far.", "completed")
    assert [str(each) for each in upstream.principals] == ["token:ann"]


@LIBRARIES
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ([chunk("Half of")], "upstream_truncated"),
        ([chunk("Half of"), DONE], "upstream_truncated"),
        ([chunk("Half of"), UpstreamUnreachable("The connection broke.")], "upstream_unreachable"),
        ([chunk("Half of"), error("The GPU fell off the bus.")], "server_error"),
    ],
    ids=["quiet cut", "no finish_reason", "loud cut", "error in the stream"],
)
async def test_an_answer_that_was_cut_is_an_error_in_the_library_and_a_failed_stream(
    create_app: CreateApp, serve: Serve, library: Any, script: Any, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, ai = create_app(ScriptedUpstream(script))
    text_model(ai, library)
    client = await serve(app)
    seen = await read((await client.post("/v1/chat/completions", json=BODY)).content)
    assert (seen.text, seen.outcome) == ("Half of", "failed")
    assert code in (seen.error["code"], seen.error["type"])
    [line] = [each.getMessage() for each in caplog.records if "model agent raised" in each.getMessage()]
    assert "raised openai.APIError (502, " in line


@LIBRARIES
@pytest.mark.parametrize(
    ("step", "told"),
    [
        (refused(429, "Slow down.", retry_after=7), (429, "upstream_refused", "Slow down.", "7")),
        (refused(400, "Too long.", code="too_long"), (400, "too_long", "Too long.", None)),
        (refused(500, "The GPU broke."), (502, "upstream_refused", "The GPU broke.", None)),
        (FirstOutputTimeout("Nothing came."), (504, "first_output_timeout", "Nothing came.", None)),
        (UpstreamUnreachable("It is down."), (502, "upstream_unreachable", "It is down.", None)),
    ],
    ids=["429", "400", "500", "timeout", "connection"],
)
async def test_an_error_of_ours_is_the_models_after_its_way_through_a_library(
    create_app: CreateApp, serve: Serve, library: Any, step: Any, told: Any
) -> None:
    app, ai = create_app(ScriptedUpstream([step]))
    text_model(ai, library)
    response = await (await serve(app)).post("/v1/chat/completions", json=BODY)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["message"], response.headers.get("retry-after")) == told
    assert response.headers["x-should-retry"] == "false"  # the library may have sent it again, and the app has
    assert error["user_message"] == step.user_message


@LIBRARIES
async def test_a_stream_that_was_stopped_within_a_library_stops_the_models(
    create_app: CreateApp, serve: Serve, library: Any
) -> None:
    app, ai = create_app(ScriptedUpstream([chunk("Half of"), Gate()]))
    text_model(ai, library)

    @ai.transform
    async def stop(chunks, chat):
        async for each in chunks:
            yield each
            if chat.body["model"] == "scripted":
                raise StreamStopped("enough")

    client = await serve(app)
    seen = await read((await client.post("/v1/streams", json=BODY, headers={"Accept": "text/event-stream"})).content)
    assert (seen.text, seen.outcome) == ("Half of", "stopped")


@LIBRARIES
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "seen"), [(429, 429), (400, 400), (401, 502), (500, 500)], ids=["429", "400", "401 of our key", "500"]
)
async def test_a_refusal_has_its_true_status_in_the_library(
    create_app: CreateApp, library: Any, stream: bool, status: int, seen: int
) -> None:
    app, ai = create_app(ScriptedUpstream([refused(status, retry_after=7)]))
    async with sdk(ai.transport(principal=ANN, app=app), library) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**{**ASKED, "stream": stream})
    assert caught.value.status_code == seen
    assert caught.value.response.headers.get("retry-after") == ("7" if seen == status else None)


@LIBRARIES
async def test_an_event_arrives_before_the_next_one_is_produced(create_app: CreateApp, library: Any) -> None:
    gates = [Gate(), Gate()]
    script = [chunk("one"), gates[0], chunk("two"), gates[1], chunk("three"), finish()]
    app, ai = create_app(ScriptedUpstream(script))
    async with sdk(ai.transport(principal=ANN, app=app), library) as client, asyncio.timeout(10):
        stream = await client.chat.completions.create(**ASKED)
        texts = []
        async for piece in stream:
            if text := piece.choices[0].delta.content:
                texts.append(text)
                if gates:
                    gates.pop(0).open()
    assert texts == ["one", "two", "three"]


async def test_an_app_waits_for_a_client_that_does_not_read(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream())
    more = ai.blueprint("more", url_prefix="/more")
    produced = 0

    @more.get("/numbers")
    async def numbers():
        async def body():
            nonlocal produced
            for produced in range(1000):
                yield b"%d " % produced

        return body()

    app.register_blueprint(more)
    async with client_of(app, ai) as client, client.stream("GET", "/more/numbers") as response:
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"0 "
        await turns()
        assert produced <= 3
        assert b"".join([each async for each in pieces]).endswith(b" 999 ")


async def test_a_client_may_take_its_time_between_two_chunks(
    create_app: CreateApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = [f"{number} " for number in range(20)]
    app, ai = create_app(ScriptedUpstream([*(step for word in words for step in (chunk(word), turns)), finish()]))
    async with sdk(ai.transport(principal=ANN, app=app), timeout=None) as client:
        stream = await client.chat.completions.create(**ASKED)
        texts = [(await anext(stream)).choices[0].delta.content]
        await turns()  # now a write waits for the client
        await pass_time(100, monkeypatch)  # the write timeout is 60
        texts += [piece.choices[0].delta.content async for piece in stream if piece.choices]
    assert "".join(filter(None, texts)) == "".join(words)
    assert "has not accepted a write in time" not in caplog.text


async def test_an_app_that_ends_in_the_middle_of_a_response_is_an_error(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream())
    more = ai.blueprint("more", url_prefix="/more")

    @more.get("/broken")
    async def broken():
        async def body():
            yield b"half of"
            raise ValueError("broken")

        return body()

    app.register_blueprint(more)
    async with client_of(app, ai) as client, client.stream("GET", "/more/broken") as response:
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"half of"
        with pytest.raises(httpx.RemoteProtocolError, match="before its response was complete"):
            await anext(pieces)


async def test_an_app_that_ends_without_a_response_is_an_error(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream())

    async def silent(scope, receive, send):
        raise KeyError("silent")

    app.asgi_app = silent
    async with client_of(app, ai) as client:
        with pytest.raises(httpx.RemoteProtocolError, match="without a response") as caught:
            await client.get("/v1/models")
    assert isinstance(caught.value.__cause__, KeyError)


@LIBRARIES
async def test_the_librarys_read_timeout_holds(create_app: CreateApp, library: Any) -> None:
    gate = Gate()
    upstream = ScriptedUpstream([chunk("one"), gate])
    app, ai = create_app(upstream)
    async with sdk(ai.transport(principal=ANN, app=app), library, timeout=0.05) as client:
        stream = await client.chat.completions.create(**ASKED)
        with pytest.raises((library.ReadTimeout, openai.APITimeoutError)):
            async for _ in stream:
                pass
    async with asyncio.timeout(5):
        await upstream.closed.wait()
    assert upstream.cancelled == 1


async def test_a_timeout_before_the_first_output_closes_the_upstreams_request(create_app: CreateApp) -> None:
    upstream = ScriptedUpstream([Gate()])
    app, ai = create_app(upstream)
    async with client_of(app, ai, timeout=0.05) as client, asyncio.timeout(5):
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json=ASKED)
        await upstream.closed.wait()
    assert upstream.cancelled == 1


# Leaving ----------------------------------------------------------------------------------------------------------


@LIBRARIES
async def test_a_client_that_leaves_closes_the_upstreams_request(create_app: CreateApp, library: Any) -> None:
    upstream = ScriptedUpstream([chunk("one"), Gate()])
    app, ai = create_app(upstream)
    ends: list[Any] = []
    ai.on_end(lambda end: ends.append((end.outcome, end.reason)))
    async with sdk(ai.transport(principal=ANN, app=app), library) as client, asyncio.timeout(5):
        async for _ in (stream := await client.chat.completions.create(**ASKED)):
            break
        await stream.close()
        await turns()  # at once: nothing waits for a clock
        assert upstream.closed.is_set()
        while not ends:
            await asyncio.sleep(0.01)
    assert (upstream.cancelled, ends) == (1, [("stopped", "client_left")])


async def test_a_reader_who_leaves_the_model_closes_the_upstreams_request(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream([chunk("one"), Gate()])
    app, ai = create_app(upstream)
    text_model(ai)
    client = await serve(app)
    async with asyncio.timeout(5):
        async with client.stream("POST", "/v1/chat/completions", json=BODY) as response:
            async for data in response.aiter_raw():
                if b"one" in data:
                    break
        await upstream.closed.wait()
    assert upstream.cancelled == 1


async def test_a_client_that_is_cancelled_before_the_first_output_leaves(create_app: CreateApp) -> None:
    gate = Gate()
    upstream = ScriptedUpstream([gate])
    app, ai = create_app(upstream)
    async with client_of(app, ai) as client, asyncio.timeout(5):
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=ASKED))
        await gate.reached()
        asking.cancel()
        await upstream.closed.wait()
    assert upstream.cancelled == 1


@pytest.mark.parametrize("waits", [False, True], ids=["before the write", "during the write"])
async def test_an_app_that_does_not_listen_sees_from_its_next_write_that_the_client_has_left(
    create_app: CreateApp, waits: bool
) -> None:
    app, ai = create_app(ScriptedUpstream())
    ended = asyncio.Event()

    async def deaf(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"more", "more_body": True})
        except OSError:
            ended.set()

    app.asgi_app = deaf
    async with client_of(app, ai) as client, asyncio.timeout(5):
        async with client.stream("GET", "/v1/models") as response:
            assert await anext(response.aiter_raw()) == b"more"
            if waits:
                await turns()  # until the client has not taken the next piece
        await ended.wait()


async def test_a_client_that_is_closed_ends_its_responses_and_waits_for_the_app(create_app: CreateApp) -> None:
    upstream = ScriptedUpstream([chunk("one"), Gate()])
    app, ai = create_app(upstream)
    async with client_of(app, ai) as client, asyncio.timeout(5):
        stream = await sdk(client._transport).chat.completions.create(**ASKED)
        await anext(stream)
        assert len(exchange._running) == 1
        await client.aclose()
        assert exchange._running == set()
        with pytest.raises(openai.APIConnectionError) as caught:
            await anext(stream)
        assert "before its response was complete" in str(caught.value.__cause__)
        await upstream.closed.wait()
    assert upstream.cancelled == 1


async def test_an_app_that_does_not_end_is_not_waited_for_for_long(
    create_app: CreateApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "_CLOSING", 0.01)
    app, ai = create_app(ScriptedUpstream())
    gate = asyncio.Event()

    async def deaf(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await gate.wait()

    app.asgi_app = deaf
    async with client_of(app, ai) as client, asyncio.timeout(5):
        await client.send(client.build_request("GET", "/v1/models"), stream=True)
        await client.aclose()
        assert len(exchange._running) == 1
        gate.set()
        await turns()
    assert exchange._running == set()


async def test_a_response_that_is_dropped_and_not_closed_ends(create_app: CreateApp) -> None:
    upstream = ScriptedUpstream([chunk("one"), Gate()])
    app, ai = create_app(upstream)
    async with client_of(app, ai) as client, asyncio.timeout(5):
        request = client.build_request("POST", "/v1/chat/completions", json=ASKED)
        response = await client.send(request, stream=True)
        assert (response.status_code, upstream.running) == (200, 1)
        del response
        gc.collect()
        await upstream.closed.wait()
    assert upstream.cancelled == 1


async def test_an_app_that_raises_after_the_client_has_left_is_not_reported_by_asyncio(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream())
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def raising(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            pass
        raise ValueError("late")

    app.asgi_app = raising
    async with client_of(app, ai) as client:
        async with client.stream("GET", "/v1/models"):
            pass
        await turns()
    gc.collect()
    assert reported == []


async def test_an_app_to_which_only_its_own_task_refers_is_not_collected(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream())
    waiting: list[weakref.ref[asyncio.Future[None]]] = []
    ended = asyncio.Event()

    async def slow(scope, receive, send):
        future = asyncio.get_running_loop().create_future()
        waiting.append(weakref.ref(future))
        await future
        ended.set()

    app.asgi_app = slow
    client = httpx.AsyncClient(transport=ai.transport(principal=ANN, app=app))
    asking = asyncio.create_task(client.get("http://app/v1/models"))
    await turns()
    asking.cancel()
    del client, asking
    await turns()
    gc.collect()
    future = waiting[0]()
    assert future is not None
    future.set_result(None)
    async with asyncio.timeout(5):
        await ended.wait()


async def test_nothing_is_left_of_a_request(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream("Hello there."))
    async with client_of(app, ai) as client:
        await client.post("/v1/chat/completions", json=ASKED)
        async with client.stream("POST", "/v1/chat/completions", json=ASKED):
            pass
        await turns()
        assert client._transport._opened == exchange._running == set()


# Who asks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Authorization", "Proxy-Authorization", "Cookie", "api-key", "X-API-Key"])
async def test_credentials_are_removed_and_other_headers_are_not(create_app: CreateApp, name: str) -> None:
    app, ai = create_app(ScriptedUpstream())
    seen: list[dict[str, str]] = []

    @app.before_request
    async def look():
        seen.append(dict(request.headers))

    async with client_of(app, ai) as client:
        for spelling in (name, name.lower(), name.upper()):
            response = await client.get("/v1/models", headers={spelling: "sk-dummy", "X-Other": "kept"})
            assert response.status_code == 200
    assert [headers["X-Other"] for headers in seen] == ["kept"] * 3
    assert "sk-dummy" not in f"{seen}"


async def test_no_auth_hook_is_asked_and_the_librarys_key_is_seen_by_nobody(
    create_app: CreateApp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    asked, headers = [], []

    async def hook():
        asked.append(1)

    upstream = ScriptedUpstream("Hello.")
    app, ai = create_app(upstream, auth=hook)

    @app.before_request
    async def look():
        headers.append(dict(request.headers))

    async with sdk(ai.transport(principal=ANN, app=app)) as client:
        await client.chat.completions.create(**ASKED)
        assert [each.id async for each in await client.models.list()] == ["scripted"]
    assert asked == []
    assert [str(each) for each in upstream.principals] == ["token:ann"]
    assert len(headers) == 2
    assert "sk-dummy" not in f"{headers} {caplog.text}"


async def test_blueprints_with_hooks_of_their_own_and_their_views_know_the_principal(create_app: CreateApp) -> None:
    async def nobody():
        return None

    app, ai = create_app(ScriptedUpstream(), auth=nobody)
    more = ai.blueprint("more", url_prefix="/more", auth=nobody, models={"scripted"})

    @more.get("/who")
    async def who():
        return str(await ai.principal())

    app.register_blueprint(more)
    async with client_of(app, ai) as client:
        assert (await client.get("/more/models")).json()["data"][0]["id"] == "scripted"
        assert (await client.get("/more/who")).text == "token:ann"
    outside = app.test_client()
    assert [(await outside.get(f"/more/{path}")).status_code for path in ("models", "who")] == [401, 401]


async def test_a_principal_that_a_cookie_proved_needs_no_origin(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream("Hello."))
    headers = {"Origin": "https://other.example", "Sec-Fetch-Site": "cross-site", "Cookie": "session=x"}
    async with client_of(app, ai, Principal("ann", realm="session", cookie=True)) as client:
        assert (await client.post("/v1/chat/completions", json=ASKED, headers=headers)).status_code == 200


FORGED = [
    "ann",
    ANN,
    {"principal": ANN, "instance": "openai_sse"},
    [ANN],
    type("Caller", (), {"principal": ANN, "instance": "openai_sse"})(),
]


@pytest.mark.parametrize("value", FORGED, ids=lambda value: type(value).__name__)
async def test_nothing_that_a_server_could_put_into_the_scope_makes_a_principal(
    create_app: CreateApp, value: Any
) -> None:
    app, _ = create_app(ScriptedUpstream())
    for scope in (
        {CALLER: value},
        {"extensions": {CALLER: value}},
        {"state": {CALLER: value}},
    ):
        response = await app.test_client().get("/v1/models", scope_base=scope)
        assert response.status_code == 401


async def test_no_header_cookie_or_query_of_a_request_makes_a_principal(create_app: CreateApp, serve: Serve) -> None:
    app, _ = create_app(ScriptedUpstream())
    client = await serve(app, headers={})
    for name in (CALLER, CALLER.replace("_", "-").replace(".", "-"), "X-Principal"):
        value = "Principal(id='ann')"
        response = await client.get("/v1/models", params={name: value}, headers={name: value, "Cookie": f"{name}=ann"})
        assert response.status_code == 401


async def test_a_caller_of_another_instance_or_of_another_app_is_nobody(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream(), url_prefix="")
    other = QuartOpenAISSE(
        app,
        name="other",
        config_prefix="OTHER_",
        auth=bearer_tokens(TOKENS),
        base_url="http://127.0.0.1:9",
        url_prefix="/other",
    )
    second, _ = create_app(ScriptedUpstream(), url_prefix="")
    inner = app.asgi_app

    async def switch(scope, receive, send):
        await (second if scope["query_string"] == b"second" else inner)(scope, receive, send)

    app.asgi_app = switch
    async with client_of(app, ai) as client:
        assert (await client.get("/models")).status_code == 200
        assert (await client.get("/other/models")).status_code == 401
        assert (await client.get("/models?second")).status_code == 401
    async with client_of(app, other) as client:
        assert (await client.get("/models")).json()["error"]["code"] == "not_found"


async def test_the_principals_limits_hold(create_app: CreateApp) -> None:
    gate = Gate()
    app, ai = create_app(ScriptedUpstream([chunk("one"), gate]), tokens_per_principal=6)  # 5 for the prompt
    spare = Principal("bob", models=frozenset({"other"}))
    narrow = Principal("cid", max_streams=1)
    async with client_of(app, ai, spare) as client:
        assert (await client.post("/v1/chat/completions", json=ASKED)).status_code == 404
    async with client_of(app, ai, narrow) as client, client.stream("POST", "/v1/chat/completions", json=ASKED) as first:
        assert first.status_code == 200
        refused = await client.post("/v1/chat/completions", json=ASKED)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
    async with client_of(app, ai) as client:
        async with client.stream("POST", "/v1/chat/completions", json=ASKED) as first:
            await anext(first.aiter_raw())
        refused = await client.post("/v1/chat/completions", json=ASKED)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "tokens_spent")


async def test_a_body_over_the_limit_is_a_413(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream(), max_body=100)
    async with client_of(app, ai) as client:
        response = await client.post("/v1/chat/completions", json={**ASKED, "user": "x" * 100})
    assert response.status_code == 413


# Where it goes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base_url", ["http://app/v1", "https://api.openai.com/v1", "http://127.0.0.1:9/v1/"])
async def test_the_path_chooses_the_route_and_no_host_is_asked(create_app: CreateApp, base_url: str) -> None:
    app, ai = create_app(ScriptedUpstream("Hello."))
    async with sdk(ai.transport(principal=ANN, app=app), base_url=base_url) as client:
        answer = await client.chat.completions.create(**{**ASKED, "stream": False})
    assert answer.choices[0].message.content == "Hello."


async def test_the_scope_is_that_of_a_server(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream())
    scopes: list[dict[str, Any]] = []

    async def asgi_app(scope, receive, send):
        scopes.append(dict(scope))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app.asgi_app = asgi_app
    async with client_of(app, ai) as client:
        await client.get("https://app:8443/v1/models/a%20b?a=1&b=%2F", headers={"X-Other": "1"})
    [scope] = scopes
    assert (b"x-other", b"1") in scope.pop("headers")
    assert scope.pop(CALLER).principal.id == "ann"
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": "/v1/models/a b",
        "raw_path": b"/v1/models/a%20b",
        "query_string": b"a=1&b=%2F",
        "root_path": "",
        "client": None,
        "server": ("app", 8443),
        "extensions": {},
    }


@pytest.mark.parametrize("prefix", ["/api/ai", "/api", "/v1", ""])
async def test_it_leads_to_the_extensions_routes_only(create_app: CreateApp, prefix: str) -> None:
    app, ai = create_app(ScriptedUpstream(), url_prefix=prefix)
    asked: list[str] = []

    @app.route("/", methods=["GET", "POST"])
    @app.route("/admin", methods=["GET", "POST"])
    @app.route("/api/ai-admin", methods=["GET", "POST"])
    @app.route("/v1/admin", methods=["GET", "POST"])
    @app.route("/v1/admin/<path:more>", methods=["GET", "POST"])
    async def admin(more: str = ""):
        asked.append(request.path)
        return "secret"

    @app.before_request
    async def look():
        asked.append(request.path)

    paths = ["/", "/admin", "/api/ai/../../admin", "/api/ai-admin", "/v1/admin", "/v1/admin/a", "/static/x", "/%61dmin"]
    async with client_of(app, ai) as client:
        for path in paths:
            for method in ("GET", "HEAD", "POST", "OPTIONS", "TRACE"):
                response = await client.request(method, path)
                assert (response.status_code, response.headers["content-type"]) == (404, "application/json")
                error = response.json()["error"]
                assert (error["code"], f"below {prefix or '/'}" in error["message"]) == ("not_found", True)
        assert asked == []
        assert (await client.get(f"{prefix}/models")).status_code == 200


async def test_a_view_of_the_app_that_shadows_a_blueprints_404_for_one_method_is_not_reached(
    create_app: CreateApp,
) -> None:
    app, ai = create_app(ScriptedUpstream())

    @app.post("/v1/admin")
    async def admin():
        return "secret"

    async with client_of(app, ai) as client:
        messages = [
            (await client.request(method, "/v1/admin")).json()["error"]["message"] for method in ("GET", "POST")
        ]
    assert messages == [
        "There is no such route.",
        "ai.transport() reaches only the extension's own routes, below /v1, and not /v1/admin.",
    ]


async def test_a_redirect_to_the_usual_form_of_a_path_leads_no_further(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream("Hello."), url_prefix="")

    @app.get("/admin/")
    async def admin():
        return "secret"

    async with client_of(app, ai, follow_redirects=True) as client:
        assert (await client.post("/chat//completions", json=ASKED)).status_code == 200
        response = await client.get("/admin")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


async def test_a_route_that_is_not_there_is_a_404_of_the_blueprint(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream())
    async with client_of(app, ai) as client:
        assert (await client.get("/v1/embeddings")).json()["error"]["message"] == "There is no such route."
        assert (await client.delete("/v1/models")).status_code == 405


async def test_a_blueprint_within_another_one_is_reached(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream(), url_prefix="/v1")
    outer = Blueprint("outer", __name__, url_prefix="/outer")
    outer.register_blueprint(ai.blueprint("inner", url_prefix="/inner"), name="other")

    @outer.get("/inner/admin")
    async def admin():
        return "secret"

    app.register_blueprint(outer)
    async with client_of(app, ai) as client:
        assert (await client.get("/outer/inner/models")).status_code == 200
        assert "only the extension's own" in (await client.get("/outer/inner/admin")).json()["error"]["message"]


@pytest.mark.filterwarnings("ignore:Current server name")
async def test_with_a_server_name_the_host_must_be_it(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream())
    app.config["SERVER_NAME"] = "example.org"
    async with client_of(app, ai) as client:
        response = await client.get("/v1/models")
        assert response.status_code == 404
        assert "The request is to app, and the app's SERVER_NAME is example.org." in response.json()["error"]["message"]
        assert (await client.get("http://example.org/v1/models")).status_code == 200


async def test_the_apps_middleware_and_hooks_see_its_requests(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quart_openai_sse")
    app, ai = create_app(ScriptedUpstream("Hello."))
    text_model(ai)
    paths: list[str] = []

    @app.before_request
    async def look():
        paths.append(request.path)

    response = await (await serve(app)).post("/v1/chat/completions", json=BODY, headers={"X-Trace-ID": "trace-7"})
    assert (await read(response.content)).outcome == "completed"
    assert paths == ["/v1/chat/completions"] * 2
    async with asyncio.timeout(5):
        while len(lines := [each for each in caplog.records if each.name == "quart_openai_sse.response"]) < 2:
            await asyncio.sleep(0)
    assert [(each.response_status, each.response_trace_id, each.response_client_left) for each in lines] == [
        (200, "trace-7", False)
    ] * 2


async def test_the_stream_id_and_a_trace_id_of_its_own_pass(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream("Hello."))
    ids: list[str] = []
    ai.on_end(lambda end: ids.append(end.record.id))
    token = set_trace_id("the model's")
    async with client_of(app, ai, headers={"X-Trace-ID": "mine"}) as client:
        response = await client.post("/v1/chat/completions", json=ASKED)
    reset_trace_id(token)
    assert response.headers["x-trace-id"] == "mine"
    assert [response.headers["x-stream-id"]] == ids


async def test_a_request_of_a_model_does_not_share_the_models_g_or_trace(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("Hello."))
    seen: list[Any] = []

    @app.before_request
    async def mark():
        g.mark = request.path

    @ai.model("agent")
    async def agent(chat):
        g.mark = "the model's"
        trace_id = current_trace_id()
        async with sdk(ai.transport(principal=chat.principal)) as client:
            async for piece in await client.chat.completions.create(**ASKED):
                yield piece
        seen.append((g.mark, trace_id == current_trace_id() != "", current_app.name == app.name))

    await (await serve(app)).post("/v1/chat/completions", json=BODY)
    assert seen == [("the model's", True, True)]


async def test_many_ask_at_once_and_each_gets_its_own_answer(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream())

    @ai.model("echo")
    async def echo(chat):
        for word in chat.messages[-1]["content"].split():
            yield f"{word} "
            await asyncio.sleep(0)

    async with sdk(ai.transport(principal=ANN, app=app)) as client:

        async def ask(number: int) -> str:
            messages: Any = [{"role": "user", "content": f"{number} " * 30}]
            text = ""
            async for piece in await client.chat.completions.create(model="echo", messages=messages, stream=True):
                text += piece.choices[0].delta.content or ""
            return text

        texts = await asyncio.gather(*(ask(number) for number in range(20)))
    assert texts == [f"{number} " * 30 for number in range(20)]


def test_one_transport_serves_several_event_loops() -> None:
    app = Quart(__name__)
    ai = QuartOpenAISSE(app, auth=allow_anonymous(), api_key="k", upstream=lambda _: ScriptedUpstream("Hi."))
    transport = ai.transport(principal=ANN, app=app)

    async def ask() -> str:
        async with app.test_app(), httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return (await read((await client.post("/v1/chat/completions", json=ASKED)).content)).text

    assert [asyncio.run(ask()) for _ in range(2)] == ["Hi.", "Hi."]


def test_a_client_on_one_event_loop_that_is_closed_does_not_disturb_another_loop() -> None:
    """Each loop is a thread. *first* has a response, while *second* is closed."""
    app = Quart(__name__)
    ai = QuartOpenAISSE(app, auth=allow_anonymous(), api_key="k", upstream=lambda _: ScriptedUpstream("Hi there."))
    transport = ai.transport(principal=ANN, app=app)
    begun, closed = Event(), Event()

    async def first() -> str:
        client = httpx.AsyncClient(transport=transport, base_url="http://app")
        async with client, client.stream("POST", "/v1/chat/completions", json=ASKED) as response:
            pieces = response.aiter_raw()
            data = await anext(pieces)
            begun.set()
            assert await asyncio.to_thread(closed.wait, 10)
            return (await read(data + b"".join([each async for each in pieces]))).outcome

    async def second() -> None:
        assert begun.wait(10)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            assert (await client.get("/v1/models")).status_code == 200
        closed.set()

    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(asyncio.run, first())
        asyncio.run(second())
        assert outcome.result(10) == "completed"


# Nesting ----------------------------------------------------------------------------------------------------------


async def test_a_model_that_asks_itself_is_refused_at_some_depth(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    app, ai = create_app(ScriptedUpstream())
    text_model(ai, model="agent")
    response = await (await serve(app)).post("/v1/chat/completions", json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "nested_too_deep")
    assert caplog.text.count("model agent raised openai.BadRequestError (400, nested_too_deep)") == 6


async def test_models_may_ask_each_other(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("Hello."))
    text_model(ai, model="second")

    @ai.model("second")
    async def second(chat):
        async with sdk(ai.transport(principal=chat.principal)) as client:
            async for piece in await client.chat.completions.create(**ASKED):
                yield piece

    response = await (await serve(app)).post("/v1/chat/completions", json=BODY)
    assert (await read(response.content)).text == "Hello."


# Mistakes ---------------------------------------------------------------------------------------------------------


async def test_mistakes_are_refused_in_words(create_app: CreateApp) -> None:
    app, ai = create_app(ScriptedUpstream())
    with pytest.raises(RuntimeError, match="app"):
        ai.transport(principal=ANN)
    with pytest.raises(ConfigurationError, match="init_app"):
        ai.transport(principal=ANN, app=Quart("other"))
    for principal in ("ann", None):
        with pytest.raises(TypeError, match=r"chat\.principal"):
            ai.transport(principal=principal, app=app)
    with pytest.raises(TypeError, match="httpx"):
        await ai.transport(principal=ANN, app=app).handle_async_request(object())
    async with app.app_context():
        assert (await httpx.AsyncClient(transport=ai.transport(principal=ANN)).get("http://app/v1/models")).is_success


@LIBRARIES
async def test_a_synchronous_client_is_refused_in_words(create_app: CreateApp, library: Any) -> None:
    app, ai = create_app(ScriptedUpstream())
    transport = ai.transport(principal=ANN, app=app)
    with pytest.raises(TypeError, match="not for a synchronous client"):
        library.Client(transport=transport).get("http://app/v1/models")
    with pytest.raises(TypeError, match="not for a synchronous client"), library.Client(transport=transport):
        pass


async def test_a_test_that_overrides_the_upstream_overrides_it_here(
    create_app: CreateApp, simulator: Simulator
) -> None:
    app, ai = create_app(base_url=simulator.base_url)
    with ai.override(app, upstream=ScriptedUpstream([chunk("Half of")])):
        async with client_of(app, ai) as client:
            response = await client.post("/v1/chat/completions", json={**ASKED, "stream": False})
    assert response.json()["error"]["code"] == UpstreamTruncated.code


def test_a_hook_keeps_its_name_and_its_need_of_a_time_limit() -> None:
    async def asks_a_server():
        return "ann"

    slow, fast = (admit(hook, "openai_sse") for hook in (asks_a_server, bearer_tokens(TOKENS)))
    assert (name_of(slow), waits(slow), waits(fast)) == ("asks_a_server", True, False)
