"""Instances, apps, loops, lifecycle; and what an app writes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import pytest
from quart import Quart, request

from quart_openai_sse import Config, Event, Principal, QuartOpenAISSE, allow_anonymous, bearer_tokens, session_user
from quart_openai_sse.errors import ConfigurationError, InvalidRequest
from quart_openai_sse.producers.chat import Chat
from quart_openai_sse.simulator import Simulator, answer, serve_simulator
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read
from tests.conftest import ANN, BOB, QUESTION, TOKENS, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION}
STREAM = {**BODY, "stream": True}


# What an app writes -------------------------------------------------------------------------------------------------


async def test_a_route_of_ones_own_starts_a_stream_and_streams_it(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hello there"))

    @app.post("/chats/<int:cid>/messages")
    async def ask(cid: int):
        me = await ai.principal()
        stream = await ai.start(await ai.body(), principal=me, thread=f"chat:{cid}", metadata={"cid": cid})
        return await stream.response(format=request.args.get("format", "text"))

    client = await serve(app)
    response = await client.post("/chats/5/messages", json=BODY)
    seen = await read(response.content)
    assert (response.status_code, seen.text, seen.outcome) == (200, "hello there", "completed")
    in_openais = await read((await client.post("/chats/5/messages?format=openai", json=BODY)).content)
    assert (in_openais.text, in_openais.outcome) == ("hello there", "completed")
    assert (await client.post("/chats/5/messages", json=BODY, headers={"Authorization": ""})).status_code == 401
    refused = await client.post("/chats/5/messages", json={"model": "scripted"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
    assert (await client.post("/chats/5/messages?format=xml", json=BODY)).status_code == 400


@pytest.mark.parametrize("thread", ["a\nb", "a\u202eb", "t" * 256, 5])
async def test_the_thread_of_a_route_of_ones_own_is_checked_too(create_app: CreateApp, thread: Any) -> None:
    app, ai = create_app(ScriptedUpstream())
    async with app.test_request_context("/"):
        with pytest.raises(InvalidRequest) as caught:
            await ai.start(BODY, principal=Principal("ann"), thread=thread)
    assert caught.value.param == "thread"


BODIES = {
    "JSON": ("application/json", b'{"a": [1]}', 200, None),
    "JSON with a charset": ("Application/JSON; charset=utf-8", b'{"a": [1]}', 200, None),
    "a form": ("application/x-www-form-urlencoded", b"a=1", 415, "unsupported_media_type"),
    "no type": ("", b'{"a": [1]}', 415, "unsupported_media_type"),
    "nothing": ("application/json", b"", 400, "invalid_json"),
    "half of it": ("application/json", b'{"a": [1', 400, "invalid_json"),
    "a list": ("application/json", b"[1]", 400, "invalid_request"),
    "as much as is allowed": ("application/json", b'{"a": [1]}'.ljust(1000), 200, None),
    "a byte too much": ("application/json", b'{"a": [1]}'.ljust(1001), 413, "request_too_large"),
    "megabytes": ("application/json", b'{"a": [1]}'.ljust(5_000_000), 413, "request_too_large"),
}


@pytest.mark.parametrize(("content_type", "data", "status", "code"), BODIES.values(), ids=BODIES)
async def test_a_body_is_checked_as_by_our_own_routes(
    create_app: CreateApp, serve: Serve, content_type: str, data: bytes, status: int, code: str | None
) -> None:
    app, ai = create_app(ScriptedUpstream(), max_body=1000)

    @app.post("/ask")
    async def ask():
        return {"body": await ai.body()}

    client = await serve(app)
    response = await client.post("/ask", content=data, headers={"Content-Type": content_type})
    assert (response.status_code, response.json().get("error", {}).get("code")) == (status, code)
    assert status != 200 or response.json() == {"body": {"a": [1]}}
    theirs = await client.post("/v1/chat/completions", content=data, headers={"Content-Type": content_type})
    assert status == 200 or (theirs.status_code, theirs.json()) == (status, response.json())


@pytest.mark.parametrize("chunked", [False, True])
async def test_quarts_limit_holds_for_a_body_in_a_route_of_ones_own(
    create_app: CreateApp, serve: Serve, chunked: bool
) -> None:
    app, ai = create_app(ScriptedUpstream())
    app.config["MAX_CONTENT_LENGTH"] = 1000

    @app.post("/ask")
    async def ask():
        return await ai.body()

    async def pieces():
        yield b"{}".ljust(2000)

    client = await serve(app, headers={**ANN, "Content-Type": "application/json"})
    refused = await client.post("/ask", content=pieces() if chunked else b"{}".ljust(2000))
    assert (refused.status_code, refused.json()["error"]["message"]) == (413, "The body is larger than 1000 bytes.")
    assert (await client.post("/ask", content=b"{}".ljust(1000))).status_code == 200


async def test_a_body_that_does_not_arrive_is_not_waited_for(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream())
    app.config["BODY_TIMEOUT"] = 0.05

    @app.post("/ask")
    async def ask():
        return await ai.body()

    client = await serve(app)
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"POST /ask HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    assert b" 408 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_a_refusal_reaches_a_client_that_is_still_sending(create_app: CreateApp, serve: Serve) -> None:
    """A server that closes on unread data resets the connection, and its response is lost."""
    app, ai = create_app(ScriptedUpstream())

    @app.post("/ask")
    async def ask():
        await ai.principal()
        return await ai.body()

    client = await serve(app)
    response = await client.post("/ask", content=b" " * 15_000_000, headers={"Authorization": ""})
    assert response.status_code == 401


async def test_a_failure_before_output_is_a_status_of_ones_own_route_too(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream([b"no"], status=503))

    @app.post("/ask")
    async def ask():
        stream = await ai.start(BODY, principal=await ai.principal())
        return await stream.response()

    response = await (await serve(app)).post("/ask")
    assert (response.status_code, response.json()["error"]["message"]) == (503, "no")


async def test_a_response_may_be_made_in_a_task_of_its_own(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream([chunk("hi"), asyncio.Event().wait]))

    @app.post("/ask")
    async def ask():
        stream = await ai.start(BODY, principal=await ai.principal())
        return await asyncio.create_task(stream.response())

    client = await serve(app)
    async with client.stream("POST", "/ask") as response:
        assert await anext(response.aiter_raw())
        relay = app.extensions["quart_openai_sse"][ai.name].engines.current()
        assert len(relay.readers) == 1
    while relay.readers:
        await asyncio.sleep(0)


async def test_events_are_given_to_the_app_itself(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("one two"))
    got: list[Any] = []

    @ai.model("own")
    async def own(chat):
        yield Event("sources", [1])
        async for each in chat.call("scripted", chat.messages):
            yield each

    @app.post("/ask")
    async def ask():
        stream = await ai.start({**BODY, "model": "own"}, principal=await ai.principal())
        async with stream.events() as events:
            async for event in events:
                got.append((event.name, event.text or event.data, event.id))
                if event.text == "one":
                    break
        async with stream.events(after=event.id) as events:
            got.extend([(event.name, event.text or event.data, event.id) async for event in events])
        return {}

    await (await serve(app)).post("/ask")
    assert [(name, id_) for name, _, id_ in got] == [
        ("sources", "1"),
        ("chunk", "2"),
        ("chunk", "3"),
        ("chunk", "4"),
        ("chunk", "5"),
        ("completed", "end"),
    ]
    assert [data for name, data, _ in got if isinstance(data, str)] == ["one", " two"]
    assert got[-1][1] == {"finish_reason": "stop", "usage": None}


async def test_the_active_stream_of_a_thread_is_found_and_stopped(create_app: CreateApp, serve: Serve) -> None:
    forever = asyncio.Event()
    app, ai = create_app(ScriptedUpstream([chunk("hi"), forever.wait]))

    @app.get("/active")
    async def active():
        stream = await ai.active(thread="t", principal=await ai.principal())
        return {"id": stream.id if stream else None}

    @app.post("/stop")
    async def stop():
        stream = await ai.active(thread="t", principal=await ai.principal())
        await stream.stop("had enough")
        return {}

    client = await serve(app)
    assert (await client.get("/active")).json() == {"id": None}
    started = (await client.post("/v1/streams", json={**BODY, "thread": "t"})).json()
    assert (await client.get("/active")).json() == {"id": started["id"]}
    assert (await client.get("/active", headers=BOB)).json() == {"id": None}
    reading = asyncio.ensure_future(client.get(started["url"]))
    await client.post("/stop")
    seen = await read((await reading).content)
    assert (seen.outcome, seen.events[-1].data) == ("stopped", '{"reason":"had enough"}')
    assert (await client.get("/active")).json() == {"id": None}


async def test_complete_gives_the_whole_message(create_app: CreateApp, serve: Serve, simulator: Simulator) -> None:
    app, ai = create_app(base_url=simulator.base_url)

    @ai.model("own")
    async def own(chat):
        yield "A title"

    @app.post("/complete/<model>")
    async def complete(model: str):
        return await ai.complete({"model": model, "messages": QUESTION}, principal=await ai.principal())

    client = await serve(app)
    asked = {"model": "sim-fast", "messages": QUESTION}
    assert (await client.post("/complete/sim-fast")).json()["content"] == answer(asked)
    assert (await client.post("/complete/own")).json() == {"role": "assistant", "content": "A title"}
    refused = await client.post("/complete/missing")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


# Instances, apps and loops ------------------------------------------------------------------------------------------


async def test_two_blueprints_of_one_instance_differ_in_auth_and_models(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hello"))

    @ai.model("support")
    async def support(chat):
        yield "at your service"

    blueprint = ai.blueprint(
        "api",
        url_prefix="/api/ai",
        auth=bearer_tokens({"api-token": "partner"}),
        models={"support"},
        routes={"chat", "models", "streams"},
    )
    app.register_blueprint(blueprint)
    client = await serve(app)
    partner = {"Authorization": "Bearer api-token"}
    assert (await client.get("/api/ai/models")).status_code == 401
    assert [model["id"] for model in (await client.get("/api/ai/models", headers=partner)).json()["data"]] == [
        "support"
    ]
    assert (await client.get("/v1/models", headers=partner)).status_code == 401
    served = await client.post("/api/ai/chat/completions", json={**STREAM, "model": "support"}, headers=partner)
    assert (await read(served.content)).text == "at your service"
    refused = await client.post("/api/ai/chat/completions", json=STREAM, headers=partner)
    assert refused.status_code == 404
    assert (await client.get("/api/ai/health")).status_code == 404
    started = (await client.post("/api/ai/streams", json={**BODY, "model": "support"}, headers=partner)).json()
    assert started["url"].startswith("/api/ai/streams/")
    assert (await read((await client.get(started["url"], headers=partner)).content)).text == "at your service"


async def test_a_blueprint_can_be_registered_below_another_prefix(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hello"))
    app.register_blueprint(ai.blueprint("again", url_prefix="/x"), url_prefix="/y", name="twice")
    client = await serve(app)
    assert (await client.post("/y/chat/completions", json=STREAM)).status_code == 200
    assert (await client.get("/y/nothing")).json()["error"]["code"] == "not_found"


async def test_two_instances_in_one_app_share_nothing(serve: Serve) -> None:
    app = Quart("two")
    app.config["SECOND_MODEL"] = "theirs"
    app.config["OPENAI_SSE_MODEL"] = "ours"
    ours, theirs = ScriptedUpstream("ours"), ScriptedUpstream("theirs")
    common = {"auth": bearer_tokens(TOKENS), "base_url": "http://127.0.0.1:9/v1"}
    QuartOpenAISSE(app, upstream=lambda _: ours, **common)
    QuartOpenAISSE(
        app, name="second", config_prefix="SECOND_", url_prefix="/second", upstream=lambda _: theirs, **common
    )
    client = await serve(app)
    for prefix, upstream in (("/v1", ours), ("/second", theirs)):
        response = await client.post(f"{prefix}/chat/completions", json={"messages": QUESTION, "stream": True})
        assert (await read(response.content)).text == upstream.requests[0]["model"]
        assert response.headers["x-trace-id"]
    started = (await client.post("/v1/streams", json=BODY)).json()
    assert (await client.get(f"/second/streams/{started['id']}")).status_code == 404
    with pytest.raises(ConfigurationError, match="name"):
        QuartOpenAISSE(app, **common)


async def test_one_extension_serves_two_apps(create_app: CreateApp, serve: Serve) -> None:
    ai = QuartOpenAISSE(
        auth=bearer_tokens(TOKENS),
        base_url="http://127.0.0.1:9/v1",
        upstream=lambda config: ScriptedUpstream(config.model),
    )
    clients = []
    for name in ("one", "two"):
        app = Quart(name)
        app.config["OPENAI_SSE_MODEL"] = name
        ai.init_app(app)
        clients.append(await serve(app))
    for client, name in zip(clients, ("one", "two"), strict=True):
        response = await client.post("/v1/chat/completions", json={"messages": QUESTION, "stream": True})
        assert (await read(response.content)).text == name
    started = (await clients[0].post("/v1/streams", json=BODY)).json()
    assert (await clients[1].get(started["url"])).status_code == 404


def test_one_app_runs_on_two_event_loops_one_after_the_other_and_at_once() -> None:
    app = Quart("loops")
    made: list[ScriptedUpstream] = []

    def upstream(_: Any) -> ScriptedUpstream:
        made.append(ScriptedUpstream("hello"))
        return made[-1]

    QuartOpenAISSE(app, auth=bearer_tokens(TOKENS), base_url="http://127.0.0.1:9/v1", upstream=upstream)

    async def ask() -> str:
        client = app.test_client()
        response = await client.post("/v1/chat/completions", json=STREAM, headers=ANN)
        return (await read(await response.get_data())).text

    assert [asyncio.run(ask()) for _ in range(2)] == ["hello"] * 2
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(asyncio.run(ask()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["hello"] * 3
    assert len(made) == 5


async def test_a_real_client_works_on_two_event_loops(simulator: Simulator) -> None:
    app = Quart("loops")
    QuartOpenAISSE(app, auth=bearer_tokens(TOKENS), base_url=simulator.base_url)

    async def ask() -> str:
        async with app.test_app() as running:
            body = {"model": "sim-fast", "messages": QUESTION, "stream": True}
            response = await running.test_client().post("/v1/chat/completions", json=body, headers=ANN)
            return (await read(await response.get_data())).text

    expected = answer({"model": "sim-fast", "messages": QUESTION})
    assert await asyncio.to_thread(lambda: asyncio.run(ask())) == expected
    assert await ask() == expected
    assert await ask() == expected  # the same loop, served a second time


async def test_stopping_the_server_ends_what_runs(create_app: CreateApp) -> None:
    forever, ends = asyncio.Event(), []
    upstream = ScriptedUpstream([chunk("hi"), forever.wait])
    app, ai = create_app(upstream)
    ai.on_end(lambda end: ends.append(end))
    async with app.test_app() as running:
        await running.test_client().post("/v1/streams", json=BODY, headers=ANN)
    assert [(end.outcome, end.reason) for end in ends] == [("failed", "server_shutdown")]
    assert upstream.running == 0


# Configuration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["OPENAI_SSE_", "CHAT_"])
async def test_a_missing_key_for_openai_keeps_the_server_from_starting(prefix: str) -> None:
    app = Quart("x")
    QuartOpenAISSE(app, auth=session_user(), config_prefix=prefix)
    with pytest.raises(ConfigurationError, match=rf"^OpenAI needs a key: set {prefix}API_KEY or OPENAI_API_KEY\.$"):
        await app.startup()


async def test_an_app_whose_models_are_its_own_needs_no_key(serve: Serve) -> None:
    app = Quart("x")
    ai = QuartOpenAISSE(app, auth=bearer_tokens(TOKENS))

    @ai.model("own")
    async def own(chat: Chat) -> AsyncIterator[str]:
        yield "Hello."

    client = await serve(app)
    answer = await client.post("/v1/chat/completions", json={**STREAM, "model": "own"})
    assert (await read(answer.content)).text == "Hello."
    models = (await client.get("/v1/models")).json()["data"]
    assert [each["id"] for each in models] == ["own"]
    for answer in (
        await client.post("/v1/chat/completions", json={**BODY, "model": "gpt-5-mini"}),
        await client.get("/v1/models/gpt-5-mini"),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (502, "upstream_credentials")
        assert error["message"] == "OpenAI needs a key: set the option api_key, or OPENAI_API_KEY."
        assert "operator" in error["user_message"]


@pytest.mark.parametrize("kind", ["an upstream of the app's", "an override"])
async def test_an_app_that_never_asks_openai_needs_no_key(serve: Serve, kind: str) -> None:
    app, upstream = Quart("x"), ScriptedUpstream("Hello.")
    own = {"upstream": lambda _: upstream} if kind == "an upstream of the app's" else {}
    ai = QuartOpenAISSE(app, auth=bearer_tokens(TOKENS), **own)
    with nullcontext() if own else ai.override(app, upstream=upstream):
        client = await serve(app)
        answer = await client.post("/v1/chat/completions", json={**STREAM, "model": "any"})
    assert (await read(answer.content)).text == "Hello."


def test_an_unknown_key_is_an_error_at_init_app() -> None:
    app = Quart("x")
    app.config["OPENAI_SSE_KEEPALVE"] = 5
    with pytest.raises(ConfigurationError, match="OPENAI_SSE_KEEPALVE"):
        QuartOpenAISSE(app, auth=session_user(), base_url="http://127.0.0.1:9/v1")


def test_the_environment_configures_through_quarts_own_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUART_OPENAI_SSE_KEEPALIVE", "7.5")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    app = Quart("x")
    app.config.from_prefixed_env()
    ai = QuartOpenAISSE(app, auth=session_user())
    assert ai.config(app).keepalive == 7.5
    assert ai.config(app).api_key == "sk-secret"
    assert "sk-secret" not in repr(ai.config(app)) + repr(ai)


async def test_an_app_that_was_not_set_up_says_so() -> None:
    ai = QuartOpenAISSE(auth=session_user())
    async with Quart("x").app_context():
        with pytest.raises(ConfigurationError, match="init_app"):
            await ai.active(thread="t", principal=None)


# For the users' own tests -------------------------------------------------------------------------------------------


async def test_a_users_test_overrides_the_upstream(create_app: CreateApp, simulator: Simulator) -> None:
    app, ai = create_app(base_url=simulator.base_url)
    client = app.test_client()

    async def ask() -> str:
        body = {"model": "sim-fast", "messages": QUESTION, "stream": True}
        response = await client.post("/v1/chat/completions", json=body, headers=ANN)
        return (await read(await response.get_data())).text

    real = answer({"model": "sim-fast", "messages": QUESTION})
    with ai.override(app, upstream=ScriptedUpstream("scripted")):
        assert await ask() == "scripted"
    assert await ask() == real
    with ai.override(app, upstream=ScriptedUpstream([chunk("again"), finish()])):
        assert await ask() == "again"
    assert await ask() == real
    await app.extensions["quart_openai_sse"][ai.name].engines.aclose()


async def test_two_simulators_are_two_upstreams() -> None:
    async with serve_simulator() as one, serve_simulator() as two:
        assert one.base_url != two.base_url


async def test_an_override_before_the_first_request_does_not_create_the_apps_own_upstream(serve: Serve) -> None:
    created: list[Config] = []

    def create(config: Config) -> ScriptedUpstream:
        created.append(config)
        return ScriptedUpstream("own")

    app = Quart(__name__)
    ai = QuartOpenAISSE(app, auth=allow_anonymous(), upstream=create, base_url="http://127.0.0.1:9/v1", model="m")
    client = await serve(app, headers={})
    body = {"messages": QUESTION, "stream": True}
    with ai.override(app, upstream=ScriptedUpstream("outer")):
        with ai.override(app, upstream=ScriptedUpstream("inner")):
            assert (await read((await client.post("/v1/chat/completions", json=body)).content)).text == "inner"
        assert (await read((await client.post("/v1/chat/completions", json=body)).content)).text == "outer"
    assert created == []  # nor when the override ends
    assert (await read((await client.post("/v1/chat/completions", json=body)).content)).text == "own"
    assert len(created) == 1


@pytest.mark.parametrize("seen", ["3", "end"])
async def test_a_stream_that_a_request_starts_does_not_begin_behind_another_streams_event(
    create_app: CreateApp, serve: Serve, seen: str
) -> None:
    app, ai = create_app(ScriptedUpstream("one two three four", "one two three four"))

    @app.get("/ask")
    async def ask() -> Any:
        stream = await ai.start(BODY, principal=await ai.principal(), idempotency_key=request.args.get("key", ""))
        async with stream.events() as events:
            async for _ in events:
                """So that every event is there, and its id could be asked for."""
        return await stream.response()

    client = await serve(app)
    response = await client.get("/ask", headers={"Last-Event-ID": seen})
    assert (response.status_code, (await read(response.content)).text) == (200, "one two three four")
    # The request that attaches to it by its key has seen this very stream.
    await client.get("/ask", params={"key": "k"})
    response = await client.get("/ask", params={"key": "k"}, headers={"Last-Event-ID": seen})
    assert response.status_code == (204 if seen == "end" else 200)
    assert (await read(response.content)).text == ("" if seen == "end" else " three four")
