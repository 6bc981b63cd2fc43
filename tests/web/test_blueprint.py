"""The routes, over a real socket: what is answered, and how bad input is refused."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from typing import Any, Literal

import httpx
import pytest
import uvicorn
from quart import Quart, Request, request

from quart_openai_sse import Event, Principal, QuartOpenAISSE, UpstreamConfig, bearer_tokens
from quart_openai_sse.formats.registry import FORMATS
from quart_openai_sse.protocol.sse import SSEDecoder
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read
from tests.conftest import ANN, BOB, QUESTION, TOKENS, CreateApp, Serve
from tests.raw import END, HEAD, Hangup, Peer, chunked, raw_upstream

BODY = {"model": "scripted", "messages": QUESTION}
STREAM = {**BODY, "stream": True}
EVENTS = {"Accept": "text/event-stream"}


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object; everything about its shape is checked."""
    error = response.json()["error"]
    assert response.headers["content-type"] == "application/json"
    assert set(error) == {"message", "type", "param", "code", "user_message"}
    assert error["message"]
    assert error["user_message"].endswith(".")
    assert response.headers["x-request-id"]
    return error


# OpenAI's routes ----------------------------------------------------------------------------------------------------


async def test_a_stream_is_the_upstreams_bytes_and_nothing_else(create_app: CreateApp, serve: Serve) -> None:
    odd = b'{ "id": "x",  "choices": [{"index": 0, "delta": {"content": "h\\u00e9"}}], "unknown": [1.50, {}] }'
    script = [
        chunk("", role="assistant"),
        b": a comment\n\nevent: message\nid: 4\nretry: 5\ndata: " + odd + b"\r\n\r\n",
        finish(),
    ]
    client = await serve(create_app(ScriptedUpstream(script))[0])
    response = await client.post("/v1/chat/completions", json=STREAM)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert len(response.headers["x-stream-id"]) == 32
    assert response.content == chunk("", role="assistant") + b"data: " + odd + b"\n\n" + finish()


async def test_blanks_around_a_chunk_are_the_chunks(create_app: CreateApp, serve: Serve) -> None:
    odd = b' {"choices": [{"index": 0, "delta": {"content": "hi"}}]}\t '
    client = await serve(create_app(ScriptedUpstream([b"data: " + odd + b"\n\n", finish()]))[0])
    response = await client.post("/v1/chat/completions", json=STREAM)
    assert response.content == b"data: " + odd + b"\n\n" + finish()


async def test_a_stream_that_is_not_kept_has_one_reader_also_before_it_says_anything(
    create_app: CreateApp, serve: Serve
) -> None:
    gate = asyncio.Event()
    app, _ = create_app(ScriptedUpstream([gate.wait, chunk("hi"), finish()]), commit_after=0)
    client = await serve(app)
    async with client.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        other = client.stream("GET", f"/v1/streams/{response.headers['x-stream-id']}")
        async with asyncio.timeout(5), other as refused:
            assert refused.status_code == 410
        gate.set()
        assert (await read(response.aiter_raw())).text == "hi"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/streams?format=openai"])
async def test_one_read_upstream_is_one_write_downstream(create_app: CreateApp, path: str) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    said = [chunk("one") + chunk(" two") + chunk(" three"), chunk(" four") + chunk(" five"), finish()]
    app, _ = create_app(ScriptedUpstream([said[0], first.wait, said[1], second.wait, said[2]]))
    async with app.test_app() as running:
        headers = {**ANN, **EVENTS, "Content-Type": "application/json"}
        async with running.test_client().request(path, method="POST", headers=headers) as connection:
            await connection.send(json.dumps(STREAM).encode())
            await connection.send_complete()
            received = await connection.receive()
            if received.startswith(b"retry:"):
                received = await connection.receive()
            first.set()
            writes = [received, await connection.receive()]
            second.set()
            await connection.disconnect()
    decoded = [[event.data for event in SSEDecoder().feed(data)] for data in writes]
    assert decoded == [[event.data for event in SSEDecoder().feed(data)] for data in said[:2]]


async def test_the_linger_is_not_for_streams_that_are_not_kept(create_app: CreateApp, serve: Serve) -> None:
    forever = asyncio.Event()
    upstream = ScriptedUpstream([chunk("hi"), forever.wait])
    client = await serve(create_app(upstream, linger=3600)[0])
    async with client.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        await anext(response.aiter_raw())
    async with asyncio.timeout(10):
        await upstream.closed.wait()
    assert upstream.cancelled == 1


async def test_usage_is_asked_of_the_upstream_and_withheld_from_who_did_not_ask(
    create_app: CreateApp, serve: Serve
) -> None:
    usage = b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'
    upstream = ScriptedUpstream([chunk("hi"), chunk(finish_reason="stop"), usage, b"data: [DONE]\n\n"])
    client = await serve(create_app(upstream)[0])
    silent = await client.post("/v1/chat/completions", json=STREAM)
    asking = await client.post("/v1/chat/completions", json={**STREAM, "stream_options": {"include_usage": True}})
    assert usage not in silent.content
    assert asking.content == silent.content.replace(b"data: [DONE]", usage + b"data: [DONE]")
    assert [request["stream_options"] for request in upstream.requests] == [{"include_usage": True}] * 2


async def test_an_answer_in_one_piece_is_untouched(create_app: CreateApp, serve: Serve) -> None:
    answer = b'{ "id":"x", "choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}], "new": 1.0 }'
    upstream = ScriptedUpstream([answer[:20], answer[20:]])
    client = await serve(create_app(upstream)[0])
    response = await client.post("/v1/chat/completions", json={**BODY, "stream_options": None})
    assert (response.status_code, response.content) == (200, answer)
    assert upstream.requests == [{**BODY}]


async def test_unknown_members_reach_the_upstream(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream()
    client = await serve(create_app(upstream)[0])
    await client.post("/v1/chat/completions", json={**STREAM, "reasoning": {"effort": "low"}, "x": None})
    assert upstream.requests[0]["reasoning"] == {"effort": "low"}
    assert upstream.requests[0]["x"] is None


async def test_the_default_model_is_used_where_none_is_named(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream()
    client = await serve(create_app(upstream, model="usual")[0])
    await client.post("/v1/chat/completions", json={"messages": QUESTION, "stream": True})
    assert upstream.requests[0]["model"] == "usual"


async def test_models_are_the_apps_own_and_the_upstreams(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream())

    @ai.model("support")
    async def support(chat):
        yield "hi"

    client = await serve(app)
    models = (await client.get("/v1/models")).json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["support", "scripted"]
    assert set(models["data"][0]) == {"id", "object", "created", "owned_by"}


@pytest.mark.parametrize("options", [{}, {"models": ["m"]}], ids=["listed by the upstream", "named by the app"])
async def test_no_list_of_models_tells_the_upstreams_address(
    create_app: CreateApp, serve: Serve, options: dict[str, Any]
) -> None:
    address = "127.0.0.1:9"
    for name, owner in (("", "upstream"), ("house", "house")):
        upstream = UpstreamConfig(base_url=f"http://{address}/v1", name=name, models=["m"], aliases={"m2": "m"})
        client = await serve(create_app(upstreams=[upstream], **options)[0])
        response = await client.get("/v1/models")
        assert {model["owned_by"] for model in response.json()["data"]} == {owner}
        one = await client.get("/v1/models/m")
        assert one.json()["owned_by"] == owner
        assert address not in response.text + one.text + repr(response.headers)


MODELS_OF_AN_APP = {
    "OpenAI's list": (b'{"object":"list","data":[{"id":"m"}]}', 200, ["support", "m"]),
    "a bare array": (b'[{"id":"m","object":"model"}]', 200, ["support", "m"]),
    "no models": (b'{"object":"list","data":null}', 200, ["support"]),
    "an entry without an id": (b'{"data":[{"id":"m"},{"name":"n"},{"id":""},7]}', 200, ["support", "m"]),
    "the name of an own model": (b'{"data":[{"id":"support"},{"id":"m"}]}', 200, ["support", "m"]),
    "an HTML page": (b"<html>", 200, ["support"]),
    "no such route": (b'{"error":{"message":"Not found"}}', 404, ["support"]),
    "busy": (b"{}", 503, ["support"]),
    "a key that is refused": (b"{}", 401, ["support"]),
}


@pytest.mark.parametrize(("body", "status", "names"), MODELS_OF_AN_APP.values(), ids=MODELS_OF_AN_APP)
async def test_the_apps_models_are_listed_whatever_the_upstream_answers(
    create_app: CreateApp, serve: Serve, body: bytes, status: int, names: list[str]
) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    async with raw_upstream(answer) as upstream:
        app, ai = create_app(base_url=upstream.base_url)

        @ai.model("support")
        async def support(chat):
            yield "hi"

        client = await serve(app)
        response = await client.get("/v1/models")
        assert (response.status_code, [each["id"] for each in response.json()["data"]]) == (200, names)


async def test_without_any_other_model_the_upstreams_error_is_the_answer(create_app: CreateApp, serve: Serve) -> None:
    async with raw_upstream(hang_up) as upstream:
        client = await serve(create_app(base_url=upstream.base_url)[0])
        response = await client.get("/v1/models")
        assert (response.status_code, error_of(response)["code"]) == (502, "upstream_unreachable")


async def hang_up(peer: Peer) -> None:
    raise Hangup


async def test_one_upstream_that_fails_does_not_hide_the_models_of_another(create_app: CreateApp, serve: Serve) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"data":[{"id":"m"}]}')

    async with raw_upstream(hang_up) as bad, raw_upstream(answer) as good:
        upstreams = [{"base_url": bad.base_url, "models": ["sonar"]}, {"base_url": good.base_url}]
        client = await serve(create_app(upstreams=upstreams)[0])
        response = await client.get("/v1/models")
        assert [each["id"] for each in response.json()["data"]] == ["sonar", "m"]


async def test_a_model_is_retrieved_by_its_id(create_app: CreateApp, serve: Serve) -> None:
    async def answer(peer: Peer) -> None:
        body = b'{"data":[{"id":"org/m","owned_by":"org"},{"id":"a//b"},{"id":"m"}]}'
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with raw_upstream(answer) as upstream:
        app, ai = create_app(base_url=upstream.base_url)

        @ai.model("support")
        async def support(chat):
            yield "hi"

        client = await serve(app)
        found = {
            path: (await client.get(f"/v1/models/{path}")).json()
            for path in ("org/m", "org%2Fm", "a//b", "m", "support")
        }
        assert found["org/m"] == found["org%2Fm"] == {"id": "org/m", "owned_by": "org"}
        assert (found["a//b"], found["m"]) == ({"id": "a//b"}, {"id": "m"})
        assert (found["support"]["id"], found["support"]["object"]) == ("support", "model")
        assert (await client.head("/v1/models/org/m")).status_code == 200
        for path in ("nothing", "org", "M", "m/", "%00", "x" * 2000):
            missing = await client.get(f"/v1/models/{path}")
            assert (missing.status_code, error_of(missing)["code"]) == (404, "model_not_found"), path
            assert len(error_of(missing)["message"]) < 400


async def test_a_model_that_the_caller_may_not_use_is_not_found(create_app: CreateApp, serve: Serve) -> None:
    async def auth():
        return Principal("ann", models=frozenset({"scripted"}))

    app, ai = create_app(ScriptedUpstream(), auth=auth)

    @ai.model("support")
    async def support(chat):
        yield "hi"

    app.register_blueprint(ai.blueprint("few", url_prefix="/few", models={"other"}))
    client = await serve(app)
    assert (await client.get("/v1/models/scripted")).status_code == 200
    for path in ("/v1/models/support", "/few/models/scripted", "/few/models/other"):
        response = await client.get(path)
        assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


async def test_of_the_upstreams_models_a_caller_sees_those_that_it_may_use(create_app: CreateApp, serve: Serve) -> None:
    class Lists(ScriptedUpstream):
        async def models(self, *, principal: Principal) -> list[dict[str, Any]]:
            return [{"id": "small"}, {"id": "large"}]

    async def auth():
        return Principal("ann", models=frozenset({"small", "other"}))

    client = await serve(create_app(Lists(), auth=auth)[0])
    assert (await client.get("/v1/models")).json()["data"] == [{"id": "small"}]
    assert (await client.get("/v1/models/small")).json() == {"id": "small"}
    for name in ("large", "other"):
        response = await client.get(f"/v1/models/{name}")
        assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


async def test_an_upstream_whose_list_does_not_come_does_not_hold_the_routes_up(
    create_app: CreateApp, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hangs(ScriptedUpstream):
        async def models(self, *, principal: Principal) -> list[dict[str, Any]]:
            return await asyncio.Event().wait() or []

    monkeypatch.setattr("quart_openai_sse.upstreams.several.PATIENCE", 0.05)
    client = await serve(create_app(Hangs())[0])
    for path in ("/v1/models", "/v1/models/scripted"):
        response = await asyncio.wait_for(client.get(path), 5)
        assert (response.status_code, error_of(response)["code"]) == (504, "total_timeout")


async def test_a_model_is_not_called_missing_while_an_upstream_does_not_answer(
    create_app: CreateApp, serve: Serve
) -> None:
    async with raw_upstream(hang_up) as upstream:
        app, ai = create_app(base_url=upstream.base_url)

        @ai.model("support")
        async def support(chat):
            yield "hi"

        client = await serve(app)
        assert (await client.get("/v1/models/support")).status_code == 200
        assert upstream.requests == []  # it is known without the upstream
        response = await client.get("/v1/models/nothing")
        assert (response.status_code, error_of(response)["code"]) == (502, "upstream_unreachable")


async def test_only_allowed_models_may_be_asked_for(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream(), models=["one", "two"])[0])
    assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["one", "two"]
    assert [(await client.get(f"/v1/models/{name}")).status_code for name in ("two", "scripted")] == [200, 404]
    refused = await client.post("/v1/chat/completions", json=STREAM)
    assert refused.status_code == 404
    assert error_of(refused)["code"] == "model_not_found"
    assert error_of(refused)["param"] == "model"


async def test_a_stream_of_events_and_nothing_else_asks_proxies_to_pass_it_on_as_it_arrives(
    create_app: CreateApp, serve: Serve
) -> None:
    app, ai = create_app(ScriptedUpstream())

    @app.post("/ask")
    async def ask():
        stream = await ai.start(BODY, principal=await ai.principal())
        return await stream.response(format=request.args["format"])

    client = await serve(app)
    started = await client.post("/v1/streams", json=BODY)
    url = started.json()["url"]
    streams = [
        await client.post("/v1/chat/completions", json=STREAM),
        await client.post("/v1/streams", json=BODY, headers=EVENTS),
        *[await client.get(f"{url}?format={name}") for name in FORMATS],
        *[await client.post(f"/ask?format={name}") for name in FORMATS],
        await client.head(url),
    ]
    # RFC 10036: a boolean of structured fields.
    expected = [(200, "text/event-stream; charset=utf-8", "?1")] * len(streams)
    assert [
        (each.status_code, each.headers["content-type"], each.headers.get("incremental")) for each in streams
    ] == expected
    others = [
        started,
        await client.post("/v1/chat/completions", json=BODY),
        await client.post("/v1/chat/completions", json={**STREAM, "messages": []}),
        await client.get("/v1/models"),
        await client.get("/v1/streams"),
        await client.get("/v1/client.js"),
        await client.get("/v1/health"),
        await client.get(url, headers={"Last-Event-ID": "end"}),
    ]
    assert [each.status_code for each in others] == [201, 200, 400, 200, 200, 200, 200, 204]
    assert not [each for each in others if "incremental" in each.headers]


# Streams ------------------------------------------------------------------------------------------------------------


async def test_a_stream_starts_at_once_and_is_read_by_its_url(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream())

    @ai.model("support")
    async def support(chat):
        yield Event("sources", [{"title": "a\nb"}])
        yield "Hello"
        yield " there."

    client = await serve(app)
    started = await client.post("/v1/streams", json={"model": "support", "messages": QUESTION})
    assert started.status_code == 201
    url = started.json()["url"]
    assert started.headers["location"] == url == f"/v1/streams/{started.json()['id']}"
    response = await client.get(url)
    assert response.content.startswith(b"retry: 1000\nevent: sources\nid: 1\n")
    events = (await read(response.content)).events
    seconds = [json.loads(event.data).pop("t") for event in events if event.event == "delta"]
    assert seconds == sorted(seconds)
    assert [(event.event, event.id) for event in events] == [
        ("sources", "1"),
        ("delta", "3"),
        ("delta", "4"),
        ("completed", "end"),
    ]
    assert json.loads(events[0].data) == [{"title": "a\nb"}]
    assert json.loads(events[-1].data) == {"finish_reason": "stop", "usage": None}


async def test_every_last_event_id_gives_exactly_the_rest(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream("one two three four five"))[0])
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    whole = await read((await client.get(url)).content)
    assert whole.text == "one two three four five"
    for place, last in enumerate(whole.ids[:-1]):
        for how in ({"headers": {"Last-Event-ID": last}}, {"params": {"last_event_id": last}}):
            rest = await read((await client.get(url, **how)).content)
            assert rest.events == whole.events[place + 1 :]


async def test_a_page_that_was_opened_in_the_middle_reconnects_at_its_latest_event(
    create_app: CreateApp, serve: Serve
) -> None:
    """EventSource asks the same address again: the parameter is where it began, the header is where it is."""
    client = await serve(create_app(ScriptedUpstream("one two three four five"))[0])
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    whole = await read((await client.get(url)).content)
    began, latest, end = whole.ids[0], whole.ids[2], whole.ids[-1]
    again = await client.get(url, params={"last_event_id": began}, headers={"Last-Event-ID": latest})
    assert (await read(again.content)).events == whole.events[3:]
    ended = await client.get(url, params={"last_event_id": began}, headers={"Last-Event-ID": end})
    assert ended.status_code == 204


async def test_who_has_the_end_is_told_to_stop_asking(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream())[0])
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    await client.get(url)
    assert (await client.get(url, headers={"Last-Event-ID": "end"})).status_code == 204


async def test_a_stream_can_be_read_in_openais_format(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream([chunk("hi"), finish()]))[0])
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    response = await client.get(url, params={"format": "openai"})
    assert response.content == (
        b"retry: 1000\nid: 1\n" + chunk("hi") + b"id: 2\n" + chunk(finish_reason="stop") + b"id: end\ndata: [DONE]\n\n"
    )


async def test_quarts_own_timeout_does_not_cut_a_stream(create_app: CreateApp, serve: Serve) -> None:
    """`RESPONSE_TIMEOUT` is the time of a whole response; Quart cuts at it, and says nothing."""
    app, _ = create_app(ScriptedUpstream([chunk("one"), lambda: asyncio.sleep(0.3), chunk(" two"), finish()]))
    app.config["RESPONSE_TIMEOUT"] = 0.05
    client = await serve(app)
    for route in ("/v1/chat/completions", "/v1/streams"):
        seen = await read((await client.post(route, json=STREAM, headers=EVENTS)).content)
        assert (seen.text, seen.outcome) == ("one two", "completed")


async def test_head_answers_without_running_the_body(create_app: CreateApp, serve: Serve) -> None:
    forever = asyncio.Event()
    client = await serve(create_app(ScriptedUpstream([chunk("hi"), forever.wait]))[0])
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    response = await client.head(url)
    async with client.stream("GET", url) as stream:
        for name in ("content-type", "cache-control", "x-accel-buffering", "x-stream-id"):
            assert response.headers[name] == stream.headers[name]
    assert (response.status_code, response.content) == (200, b"")


async def test_starting_with_accept_event_stream_gives_the_stream_itself(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream("one two"))[0])
    response = await client.post("/v1/streams", json=BODY, headers=EVENTS)
    assert response.status_code == 200
    seen = await read(response.content)
    assert (seen.text, seen.outcome) == ("one two", "completed")
    again = await client.get(f"/v1/streams/{response.headers['x-stream-id']}")
    assert (await read(again.content)).events == seen.events


async def test_running_streams_are_listed_by_thread_and_stopped(create_app: CreateApp, serve: Serve) -> None:
    forever = asyncio.Event()
    upstream = ScriptedUpstream([chunk("hi"), forever.wait])
    client = await serve(create_app(upstream)[0])
    one = (await client.post("/v1/streams", json={**BODY, "thread": "one"})).json()
    two = (await client.post("/v1/streams", json={**BODY, "thread": "two"})).json()
    assert "thread" not in upstream.requests[0]
    listed = (await client.get("/v1/streams")).json()
    assert [stream["id"] for stream in listed["data"]] == [two["id"], one["id"]]
    [found] = (await client.get("/v1/streams", params={"thread": "one"})).json()["data"]
    assert {**found, "created": 0} == {
        "id": one["id"],
        "object": "stream",
        "url": one["url"],
        "thread": "one",
        "model": "scripted",
        "created": 0,
    }
    assert (await client.get("/v1/streams", headers=BOB)).json()["data"] == []

    async with client.stream("GET", one["url"]) as response:
        for _ in range(2):
            assert (await client.delete(one["url"])).status_code == 204
        seen = await read(response.aiter_raw())
    assert (seen.text, seen.outcome) == ("hi", "stopped")
    assert json.loads(seen.events[-1].data) == {"reason": "stopped by its owner"}
    assert [stream["id"] for stream in (await client.get("/v1/streams")).json()["data"]] == [two["id"]]
    assert upstream.cancelled == 1


async def test_a_strangers_stream_does_not_exist(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream())[0])
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    for method in ("GET", "DELETE"):
        refused = await client.request(method, url, headers=BOB)
        assert (refused.status_code, error_of(refused)["code"]) == (404, "stream_not_found")
    assert (await client.get(url)).status_code == 200


async def test_a_failure_before_output_is_an_event_to_who_reads_by_url(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream([b'{"error":{"message":"no","code":"busy"}}'], status=503)
    client = await serve(create_app(upstream)[0])
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    response = await client.get(url)
    assert response.status_code == 200
    seen = await read(response.content)
    assert (seen.outcome, seen.error["code"]) == ("failed", "busy")
    direct = await client.post("/v1/streams", json=BODY, headers=EVENTS)
    assert direct.status_code == 503


# Idempotency-Key ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/streams"])
async def test_the_same_idempotency_key_attaches_to_the_same_stream(
    create_app: CreateApp, serve: Serve, route: str
) -> None:
    upstream = ScriptedUpstream("one two")
    client = await serve(create_app(upstream)[0])
    headers = {"Idempotency-Key": "k-1", **EVENTS}
    first = await client.post(route, json=STREAM, headers=headers)
    second = await client.post(route, json=STREAM, headers=headers)
    assert (await read(first.content)).outcome == "completed"
    assert first.content == second.content
    assert len(upstream.requests) == 1
    other = await client.post(route, json={**STREAM, "temperature": 1}, headers=headers)
    assert other.status_code == 422
    assert error_of(other)["param"] == "Idempotency-Key"
    await client.post(route, json=STREAM, headers={**headers, **BOB})
    assert len(upstream.requests) == 2


async def test_the_same_idempotency_key_gives_the_same_answer_in_one_piece(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream([b'{"choices":[{"index":0,"message":{"content":"hi"}}]}'])
    client = await serve(create_app(upstream)[0])
    headers = {"Idempotency-Key": "k-1"}
    first = await client.post("/v1/chat/completions", json=BODY, headers=headers)
    second = await client.post("/v1/chat/completions", json=BODY, headers=headers)
    assert first.content == second.content
    assert len(upstream.requests) == 1


async def test_a_failed_start_does_not_hold_its_key(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream([OSError("gone")], "it works")
    client = await serve(create_app(upstream)[0])
    headers = {"Idempotency-Key": "k-1"}
    assert (await client.post("/v1/chat/completions", json=STREAM, headers=headers)).status_code == 500
    again = await client.post("/v1/chat/completions", json=STREAM, headers=headers)
    assert (await read(again.content)).text == "it works"


# Bad input ----------------------------------------------------------------------------------------------------------

DEEP = b'{"a":' * 20_000 + b"1" + b"}" * 20_000

BAD_BODIES = {
    "invalid JSON": (b"{", None),
    "invalid UTF-8": (b'{"model":"\xff"}', None),
    "deep nesting": (DEEP, None),
    "NaN": (b'{"model":"m","messages":[{"role":"user"}],"temperature":NaN}', None),
    "an infinite number": (b'{"model":"m","messages":[{"role":"user"}],"temperature":1e999}', None),
    "no object": (b"[]", None),
    "empty": (b"", None),
    "model not a string": (b'{"model":5,"messages":[{"role":"user"}]}', "model"),
    "no messages": (b'{"model":"m"}', "messages"),
    "empty messages": (b'{"model":"m","messages":[]}', "messages"),
    "a blank role": (b'{"model":"m","messages":[{"role":" "}]}', "messages[0].role"),
    "temperature": (b'{"model":"m","messages":[{"role":"user"}],"temperature":"2"}', "temperature"),
    "n": (b'{"model":"m","messages":[{"role":"user"}],"n":0}', "n"),
    "stream": (b'{"model":"m","messages":[{"role":"user"}],"stream":"yes"}', "stream"),
}


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/streams"])
@pytest.mark.parametrize(("body", "param"), BAD_BODIES.values(), ids=BAD_BODIES)
async def test_a_bad_body_is_a_400_that_names_the_member(
    create_app: CreateApp, serve: Serve, route: str, body: bytes, param: str | None
) -> None:
    client = await serve(create_app(ScriptedUpstream())[0])
    response = await client.post(route, content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, error_of(response)["param"]) == (400, param)


async def answer_to_java(app: Quart, http: Literal["h11", "httptools"]) -> tuple[bytes, bytes]:
    """The status line and the body with which *app* on uvicorn answers a POST as Java's HttpClient sends it."""
    server = uvicorn.Server(uvicorn.Config(app, http=http, ws="none", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        body = json.dumps(BODY).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nHost: x\r\n"
            b"Content-Length: %d\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\n"
            b"Upgrade: h2c\r\nUser-Agent: Java-http-client/17\r\nAuthorization: Bearer token-ann\r\n"
            b"Content-Type: application/json\r\n\r\n%b" % (len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        answered = await reader.readexactly(length)
        writer.close()
        server.should_exit = True
        await serving
    return head.partition(b"\r\n")[0], answered


async def test_a_body_that_the_server_lost_because_of_an_upgrade_is_a_400_that_says_so(create_app: CreateApp) -> None:
    line, answered = await answer_to_java(create_app(ScriptedUpstream())[0], "httptools")
    lost = "uvicorn with httptools loses the body of such a request" in answered.decode()
    # Or it is a uvicorn that no longer loses it.
    assert (line, lost) in {(b"HTTP/1.1 400 Bad Request", True), (b"HTTP/1.1 200 OK", False)}
    if lost:
        assert {**json.loads(answered)["error"], "message": ""} == {
            "message": "",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_json",
            "user_message": "This request could not be understood.",
        }


async def test_uvicorn_with_h11_keeps_the_body_of_a_request_that_offers_an_upgrade(create_app: CreateApp) -> None:
    whole = b'{"choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}]}'
    line, answered = await answer_to_java(create_app(ScriptedUpstream([whole]))[0], "h11")
    assert (line, answered) == (b"HTTP/1.1 200 OK", whole)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
async def test_another_content_type_is_a_415(create_app: CreateApp, serve: Serve, content_type: str) -> None:
    client = await serve(create_app(ScriptedUpstream())[0])
    response = await client.post(
        "/v1/chat/completions", content=json.dumps(STREAM), headers={"Content-Type": content_type}
    )
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_a_413(create_app: CreateApp, serve: Serve, chunked: bool) -> None:
    client = await serve(create_app(ScriptedUpstream(), max_body=100_000)[0])
    large = json.dumps({**STREAM, "x": "y" * 200_000}).encode()

    async def pieces():
        for start in range(0, len(large), 1000):
            yield large[start : start + 1000]

    response = await client.post(
        "/v1/chat/completions",
        content=pieces() if chunked else large,
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"
    fitting = await client.post("/v1/chat/completions", json={**STREAM, "x": "y" * 90_000})
    assert fitting.status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("max_body", "quarts_limit", "size"), [(20 << 20, 16 << 20, 18 << 20), (100_000, 1000, 50_000), (1000, None, 900)]
)
async def test_max_body_is_the_limit_whatever_quarts_own_limit_is(
    create_app: CreateApp, serve: Serve, max_body: int, quarts_limit: int | None, size: int, chunked: bool
) -> None:
    app, _ = create_app(ScriptedUpstream(), max_body=max_body)
    assert app.config["MAX_CONTENT_LENGTH"] == 16 << 20  # Quart's default
    app.config["MAX_CONTENT_LENGTH"] = quarts_limit  # after `init_app`, as an app may do
    client = await serve(app)
    for length, status in ((size, 200), (max_body + 1, 413)):
        body = json.dumps(STREAM).encode().ljust(length)

        async def pieces():
            for start in range(0, len(body), 1 << 20):  # noqa: B023 (it is sent within this round)
                yield body[start : start + (1 << 20)]  # noqa: B023

        response = await client.post(
            "/v1/chat/completions",
            content=pieces() if chunked else body,
            headers={"Content-Type": "application/json"},
        )
        assert response.status_code == status
    assert error_of(response)["message"] == f"The body is larger than {max_body} bytes."


async def test_a_body_may_arrive_while_the_caller_is_still_asked_for(create_app: CreateApp, serve: Serve) -> None:
    """Quart 0.22 refuses a request of which it has buffered more than its limit."""
    sent = asyncio.Event()

    async def auth():
        await sent.wait()
        return "ann"

    app, _ = create_app(ScriptedUpstream(), max_body=100_000, auth=auth)
    app.config["MAX_CONTENT_LENGTH"] = 1000
    inner = app.asgi_app

    async def noticing(scope: Any, receive: Any, send: Any) -> None:
        async def noticed() -> Any:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                asyncio.get_running_loop().call_soon(sent.set)
            return message

        await inner(scope, noticed, send)

    app.asgi_app = noticing
    client = await serve(app)
    body = json.dumps(STREAM).encode().ljust(50_000)
    response = await client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200


async def test_an_apps_own_kind_of_request_is_kept_and_sees_the_length_of_a_body(
    create_app: CreateApp, serve: Serve
) -> None:
    class Ours(Request):
        tenant = "acme"

    app = Quart(__name__)
    app.request_class = Ours
    options = {"base_url": "http://127.0.0.1:9/v1", "max_body": 1000}
    for name in ("one", "two"):
        QuartOpenAISSE(app, auth=bearer_tokens(TOKENS), name=name, config_prefix=name, url_prefix=f"/{name}", **options)
    seen = []

    @app.before_request
    async def note():
        seen.append((request.tenant, isinstance(request._get_current_object(), Ours), request.content_length))

    client = await serve(app)
    for length in (2, 2000):
        await client.post("/one/chat/completions", content=b"{}".ljust(length))
    assert seen == [("acme", True, 2), ("acme", True, 2000)]


async def test_with_a_kind_of_request_that_is_set_later_quarts_limit_holds_as_well(
    create_app: CreateApp, serve: Serve
) -> None:
    class Ours(Request):
        pass

    app, _ = create_app(ScriptedUpstream(), max_body=100_000)
    app.request_class = Ours  # after `init_app`, whose docstring says what that means
    app.config["MAX_CONTENT_LENGTH"] = 1000
    client = await serve(app)
    for length, status in ((900, 200), (50_000, 413)):
        body = json.dumps(STREAM).encode().ljust(length)
        response = await client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == status


@pytest.mark.parametrize("megabytes", [5, 20])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_413_reaches_a_client_that_is_still_sending(
    create_app: CreateApp, serve: Serve, megabytes: int, chunked: bool
) -> None:
    """A server that closes on unread data resets the connection, and its answer is lost."""
    client = await serve(create_app(ScriptedUpstream(), max_body=4 << 20)[0])
    part = b" " * 100_000

    async def pieces():
        for _ in range(megabytes * 10):
            yield part

    response = await client.post(
        "/v1/chat/completions",
        content=pieces() if chunked else part * megabytes * 10,
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 413


async def read_response(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """The status and the JSON of the next response of a connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    assert length
    return int(head.split()[1]), json.loads(await reader.readexactly(int(length[1])))


@pytest.mark.parametrize("sent", [b"", b"{"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/own"])
@pytest.mark.parametrize(("token", "status"), [("token-ann", 413), ("strange", 401)])
async def test_a_body_that_is_too_large_by_its_length_is_refused_before_it_arrives(
    create_app: CreateApp,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    status: int,
    path: str,
    sent: bytes,
) -> None:
    app, ai = create_app(ScriptedUpstream(), max_body=1000)
    app.config["BODY_TIMEOUT"] = 1000
    monkeypatch.setattr("quart_openai_sse.web.bodies._PATIENCE", 1000)  # for the body, after the response
    monkeypatch.setattr("quart_openai_sse.web.responses._SILENCE", 0.05)

    @app.post("/own")
    async def own():
        await ai.principal()
        return await ai.body()

    client = await serve(app)
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    async with asyncio.timeout(20):
        for length in (1001, 10_000_000):
            writer.write(f"{head}Content-Length: {length}\r\n\r\n".encode() + sent)
            assert (await read_response(reader))[0] == status
            writer.write(bytes(length - len(sent)))  # a client may send it all the same, and goes on
    writer.write(f"{head}Content-Length: {10**15}\r\n\r\n".encode() + sent)
    assert (await read_response(reader))[0] == status
    writer.close()


async def test_a_request_with_pictures_passes_by_default(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream("A moon.")
    client = await serve(create_app(upstream)[0])
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4_000_000}}
    messages = [{"role": "user", "content": [picture] * 3}]
    response = await client.post("/v1/chat/completions", json={**STREAM, "messages": messages})
    assert (response.status_code, upstream.requests[0]["messages"]) == (200, messages)


async def test_a_picture_in_one_event_passes_by_default(create_app: CreateApp, serve: Serve) -> None:
    picture = "data:image/png;base64," + "A" * 3_000_000
    client = await serve(create_app(ScriptedUpstream([chunk("Here: "), chunk(picture), finish()]))[0])
    assert (await read((await client.post("/v1/chat/completions", json=STREAM)).content)).text == f"Here: {picture}"
    resumable = await client.post("/v1/streams", json=BODY, headers=EVENTS)
    assert (await read(resumable.content)).outcome == "completed"


async def test_other_routes_below_our_prefix_keep_their_bodies(create_app: CreateApp, serve: Serve) -> None:
    app, _ = create_app(ScriptedUpstream(), max_body=1000)

    @app.post("/v1/upload")
    async def upload():
        return str(len(await request.get_data()))

    client = await serve(app)
    assert (await client.post("/v1/upload", content=b"x" * 100_000)).text == "100000"


async def test_only_who_started_a_stream_that_is_not_kept_reads_it(create_app: CreateApp, serve: Serve) -> None:
    forever = asyncio.Event()
    client = await serve(create_app(ScriptedUpstream([chunk("hi"), forever.wait]))[0])
    async with client.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        url = f"/v1/streams/{response.headers['x-stream-id']}"
        other = await client.get(url)
        assert (other.status_code, error_of(other)["code"]) == (410, "stream_expired")
        assert (await client.delete(url)).status_code == 204
        assert (await read(response.aiter_raw())).outcome == "stopped"


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/streams?format=text"])
async def test_silence_is_filled_also_while_entries_come_that_are_not_shown(
    create_app: CreateApp, serve: Serve, route: str
) -> None:
    """Minutes of a tool call's arguments in the text format, or of app events on OpenAI's wire."""
    app, ai = create_app(ScriptedUpstream(), keepalive=0.01)

    piece = {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": " "}}]}}]}

    @ai.model("thinker")
    async def thinker(chat):
        yield "Well: "
        for _ in range(30):
            yield Event("thought", 1) if "chat" in route else piece
            await asyncio.sleep(0.005)
        yield "done"

    client = await serve(app)
    response = await client.post(route, json={**STREAM, "model": "thinker"}, headers=EVENTS)
    assert response.content.count(b":\n") > 3
    assert b":\n\n" not in response.content
    assert (await read(response.content)).text == "Well: done"


@pytest.mark.parametrize(
    "model", ["a\nb", "a\u2028b", "a\x85b", "a\u202eb", "a\u200f", "x" * 257, " ", "\0"], ids=ascii
)
async def test_a_models_name_cannot_forge_a_log_line(create_app: CreateApp, serve: Serve, model: str) -> None:
    client = await serve(create_app(ScriptedUpstream())[0])
    response = await client.post("/v1/chat/completions", json={**STREAM, "model": model})
    assert (response.status_code, error_of(response)["param"]) == (400, "model")


@pytest.mark.parametrize("answer", [b'{"foo":1}', b'{"choices":null}', b'{"choices":[1]}', b'{"choices":[]}', b"[]"])
async def test_an_answer_without_a_message_is_the_upstreams_fault(
    create_app: CreateApp, serve: Serve, answer: bytes
) -> None:
    client = await serve(create_app(ScriptedUpstream([answer]))[0])
    response = await client.post("/v1/chat/completions", json=BODY)
    assert (response.status_code, error_of(response)["code"]) == (502, "upstream_garbled")


FAILED_ANSWERS = {
    "MiniMax's": (b'{"choices": null, "base_resp": {"status_code": 1000, "status_msg": "Overloaded"}}', 500),
    "OpenAI's": (b'{"error": {"message": "Overloaded", "code": 503}}', 503),
    "detail": (b'{"detail": "Overloaded"}', 502),
    "an array": (b'[{"error": {"message": "Overloaded", "code": 429}}]', 429),
    "a stream": (b'data: {"error": {"message": "Overloaded", "code": 503}}\n\ndata: [DONE]\n\n', 503),
    "a stream with a named event": (chunk("Hi") + b'event: error\ndata: {"message": "Overloaded", "code": 503}', 503),
}


@pytest.mark.parametrize(("body", "status"), FAILED_ANSWERS.values(), ids=FAILED_ANSWERS)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_with_status_200_is_the_error(
    create_app: CreateApp, serve: Serve, body: bytes, status: int, stream: bool
) -> None:
    async def answer(peer: Peer) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        await peer.send(head % len(body) + body)

    async with raw_upstream(answer) as upstream:
        client = await serve(create_app(base_url=upstream.base_url)[0])
        response = await client.post("/v1/chat/completions", json={**BODY, "stream": stream})
        if stream and body.startswith(chunk("Hi")):
            assert (await read(response.content)).error["message"] == "Overloaded"
        else:
            assert (response.status_code, error_of(response)["message"]) == (status, "Overloaded")


async def test_an_answer_that_is_a_text_is_an_error(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream([b'"Overloaded"']))[0])
    response = await client.post("/v1/chat/completions", json=BODY)
    assert (response.status_code, error_of(response)["message"]) == (502, "Overloaded")


async def test_a_stream_that_was_not_asked_for_is_refused_in_words(create_app: CreateApp, serve: Serve) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(HEAD + chunked(chunk("Hi") + finish()) + END)

    async with raw_upstream(answer) as upstream:
        client = await serve(create_app(base_url=upstream.base_url)[0])
        response = await client.post("/v1/chat/completions", json=BODY)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (502, "upstream_garbled")
    assert error["message"] == "The upstream answered with an event stream instead of a JSON object."


@pytest.mark.parametrize("stream", [False, True])
async def test_any_2xx_with_any_label_is_an_answer(create_app: CreateApp, serve: Serve, stream: bool) -> None:
    body = chunk("Hi") + finish() if stream else b'{"choices": [{"index": 0, "message": {"content": "Hi"}}]}'

    async def answer(peer: Peer) -> None:
        head = b"HTTP/1.1 201 Created\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(body)
        await peer.send(head + body)

    async with raw_upstream(answer) as upstream:
        client = await serve(create_app(base_url=upstream.base_url)[0])
        response = await client.post("/v1/chat/completions", json={**BODY, "stream": stream})
        assert (response.status_code, response.content) == (200, body)


async def test_a_preamble_without_end_is_garbled(create_app: CreateApp, serve: Serve) -> None:
    empty = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n' * 1000
    client = await serve(create_app(ScriptedUpstream([empty] * 100))[0])
    response = await client.post("/v1/chat/completions", json=STREAM)
    assert (response.status_code, error_of(response)["code"]) == (502, "upstream_garbled")


@pytest.mark.parametrize("headers", [{"Authorization": ""}, {"Authorization": "Bearer nobody"}])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/scripted"),
        ("POST", "/v1/streams"),
        ("GET", "/v1/streams"),
        ("GET", "/v1/streams/" + "0" * 32),
        ("DELETE", "/v1/streams/" + "0" * 32),
    ],
)
async def test_nobody_is_a_401(create_app: CreateApp, serve: Serve, method: str, path: str, headers: Any) -> None:
    client = await serve(create_app(ScriptedUpstream())[0])
    response = await client.request(method, path, headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("stream_id", ["0" * 32, "x", "0" * 31, "A" * 32, "..%2F"])
async def test_an_unknown_stream_is_a_404(create_app: CreateApp, serve: Serve, stream_id: str) -> None:
    client = await serve(create_app(ScriptedUpstream())[0])
    for method in ("GET", "DELETE"):
        response = await client.request(method, f"/v1/streams/{stream_id}")
        assert response.status_code == 404
        assert error_of(response)["code"] in ("stream_not_found", "not_found")


@pytest.mark.parametrize("last", ["-1", "0", "x", "99", "1.5", "01", "end2", "9" * 30])
async def test_a_malformed_last_event_id_is_a_400_and_never_a_replay(
    create_app: CreateApp, serve: Serve, last: str
) -> None:
    client = await serve(create_app(ScriptedUpstream())[0])
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    await client.get(url)
    response = await client.get(url, headers={"Last-Event-ID": last})
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_last_event_id")


async def test_an_expired_stream_is_a_410(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream(), retention=0)[0])
    response = await client.post("/v1/streams", json=BODY, headers=EVENTS)
    gone = await client.get(f"/v1/streams/{response.headers['x-stream-id']}")
    assert (gone.status_code, error_of(gone)["code"]) == (410, "stream_expired")


async def test_an_unknown_format_a_bad_thread_and_a_bad_key_are_400(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream())[0])
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    for response, param in (
        (await client.get(url, params={"format": "xml"}), "format"),
        (await client.post("/v1/streams", json=BODY, params={"format": "xml"}), "format"),
        (await client.post("/v1/streams", json={**BODY, "thread": 5}), "thread"),
        (await client.post("/v1/streams", json={**BODY, "thread": "a\u202eb"}), "thread"),
        (await client.post("/v1/streams", json={**BODY, "thread": "a\u2028b"}), "thread"),
        (await client.post("/v1/streams", json=BODY, headers={"Idempotency-Key": "x" * 300}), "Idempotency-Key"),
    ):
        assert (response.status_code, error_of(response)["param"]) == (400, param)


async def test_too_many_streams_are_a_429_that_says_when_to_come_back(create_app: CreateApp, serve: Serve) -> None:
    forever = asyncio.Event()
    upstream = ScriptedUpstream([chunk("hi"), forever.wait])
    client = await serve(create_app(upstream, max_streams_per_principal=2, max_streams=3)[0])
    for headers in (ANN, ANN, BOB):
        assert (await client.post("/v1/streams", json=BODY, headers=headers)).status_code == 201
    refused = await client.post("/v1/streams", json=BODY)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "too_many_streams")
    assert 0 < int(refused.headers["retry-after"]) <= 120
    assert (await client.post("/v1/streams", json=BODY, headers=BOB)).status_code == 429
    [running] = (await client.get("/v1/streams", headers=BOB)).json()["data"]
    async with client.stream("GET", running["url"], headers=BOB) as response:
        await client.delete(running["url"], headers=BOB)
        await read(response.aiter_raw())
    assert (await client.post("/v1/streams", json=BODY, headers=BOB)).status_code == 201


async def test_a_limit_holds_in_a_race(create_app: CreateApp, serve: Serve) -> None:
    forever = asyncio.Event()
    upstream = ScriptedUpstream([chunk("hi"), forever.wait])
    app, _ = create_app(upstream, max_streams_per_principal=5)
    client = await serve(app)
    answers = await asyncio.gather(*(client.post("/v1/streams", json=BODY) for _ in range(30)))
    assert sorted(answer.status_code for answer in answers) == [201] * 5 + [429] * 25


async def test_routes_that_do_not_exist_are_openai_shaped(create_app: CreateApp, serve: Serve) -> None:
    app, _ = create_app(ScriptedUpstream())

    @app.get("/own")
    async def own():
        return "mine"

    client = await serve(app)
    for path in ("/v1/nothing", "/v1", "/v1/", "/v1/chat", "/v1/streams/a/b"):
        response = await client.get(path)
        assert (response.status_code, error_of(response)["code"]) == (404, "not_found"), path
    for method, path, allowed in (
        ("GET", "/v1/chat/completions", "OPTIONS, POST"),
        ("DELETE", "/v1/models", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/models/org/m", "GET, HEAD, OPTIONS"),
        ("PUT", "/v1/streams", "GET, HEAD, OPTIONS, POST"),
        ("PATCH", "/v1/streams/" + "0" * 32, "DELETE, GET, HEAD, OPTIONS"),
    ):
        response = await client.request(method, path)
        assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")
        assert response.headers["allow"] == allowed
        options = await client.options(path)
        assert (options.status_code, options.content, options.headers["allow"]) == (204, b"", allowed)
    assert (await client.get("/own")).text == "mine"
    assert "json" not in (await client.get("/nothing of ours")).headers["content-type"]


async def test_groups_of_routes_can_be_left_out(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream(), routes={"chat"})[0])
    assert (await client.post("/v1/chat/completions", json=STREAM)).status_code == 200
    assert (await client.get("/v1/models")).status_code == 404
    assert (await client.get("/v1/health")).status_code == 404


async def test_health_and_client_need_no_credentials(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream())[0], headers={})
    assert (await client.get("/v1/health")).json() == {"status": "ok"}
    assert (await client.get("/v1/ready")).json() == {"status": "ready"}
    module = await client.get("/v1/client.js")
    assert module.headers["content-type"].startswith("text/javascript")
    assert "export class StreamClient" in module.text
    known = await client.get("/v1/client.js", headers={"If-None-Match": module.headers["etag"]})
    assert known.status_code == 304


async def test_a_client_that_sends_half_a_body_is_not_waited_for(create_app: CreateApp, serve: Serve) -> None:
    app, _ = create_app(ScriptedUpstream())
    app.config["BODY_TIMEOUT"] = 0.05
    client = await serve(app)
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-ann\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    assert b" 408 " in await reader.readline()
    writer.close()
    await writer.wait_closed()
