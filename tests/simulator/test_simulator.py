from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse.simulator import (
    PARAGRAPHS,
    Simulator,
    answer,
    create_simulator,
    loopback,
    pieces,
    serve_simulator,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HELLO = [{"role": "user", "content": 'Say "héllo" to 世界 👋'}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "metric": {"type": "boolean"},
                "units": {"enum": ["C", "F"]},
            },
            "required": ["city"],
        },
    },
}


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with serve_simulator(first_token_delay=0, tokens_per_second=0) as running:
        yield running


@pytest.fixture
async def http(simulator: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=simulator.base_url, timeout=None) as client:
        yield client


@pytest.fixture
async def sdk(simulator: Simulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=simulator.base_url, api_key="any", max_retries=0) as client:
        yield client


def body(model: str = "sim", **members: Any) -> dict[str, Any]:
    return {"model": model, "messages": HELLO, **members}


async def chunks_of(http: httpx.AsyncClient, request: dict[str, Any]) -> list[Any]:
    response = await http.post("/chat/completions", json={**request, "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, rest = response.content.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


# What it answers


@given(st.text())
def test_cutting_a_text_into_pieces_loses_nothing(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert all(pieces(text))


def test_the_paragraphs_contain_text_that_is_easily_broken() -> None:
    text = "\n\n".join(PARAGRAPHS)
    for rarity in ("\n\n", "\t", '"', "\\", "<b>", "&", "é", "川", "한", "👩\u200d🚀", "\u2028", "\u0085", "\u00a0"):
        assert rarity in text


def test_the_same_request_gets_the_same_answer_and_another_one_another() -> None:
    other = body(messages=[{"role": "user", "content": "Something else"}])
    assert answer(body()) == answer(body())
    assert answer(body()) != answer(other)
    assert len({answer(body(), choice) for choice in range(16)}) == 16


@pytest.mark.parametrize("length", [1, 2, 250, 4000, 20_000])
@pytest.mark.parametrize("question", ["a", "b", "c", "d", "e"])
def test_a_length_is_exact(length: int, question: str) -> None:
    request = body(f"sim-length-{length}", messages=[{"role": "user", "content": question}])
    assert len(pieces(answer(request))) == length


def test_text_parts_are_read_like_a_string() -> None:
    parts = [{"type": "text", "text": HELLO[0]["content"]}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert answer(body(messages=[{"role": "user", "content": parts}])) == answer(body())


@pytest.mark.parametrize("stop", ["simulator", ["nowhere", "", "simulator", "know nothing"]])
def test_the_text_ends_before_the_first_stop(stop: Any) -> None:
    before, found, _ = answer(body()).partition("simulator")
    assert found
    assert answer(body(stop=stop)) == before


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_counts_pieces(name: str) -> None:
    limited: dict[str, Any] = {name: 7}
    assert pieces(answer(body(**limited))) == pieces(answer(body()))[:7]


# Streaming


async def test_a_stream_is_chunks_as_openai_sends_them(http: httpx.AsyncClient) -> None:
    first, *middle, last = await chunks_of(http, body())
    same = {"id", "object", "created", "model"}
    assert all(
        {name: chunk[name] for name in same} == {name: first[name] for name in same} for chunk in [*middle, last]
    )
    assert (first["object"], first["model"]) == ("chat.completion.chunk", "sim")
    assert first["id"].startswith("chatcmpl-")
    assert "usage" not in first
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert [chunk["choices"][0]["delta"]["content"] for chunk in middle] == pieces(answer(body()))
    assert {chunk["choices"][0]["finish_reason"] for chunk in middle} == {None}
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]


async def test_only_the_id_and_the_time_differ_between_two_answers(http: httpx.AsyncClient) -> None:
    request = body(n=2, stream_options={"include_usage": True})
    one, two = await chunks_of(http, request), await chunks_of(http, request)
    assert [{**chunk, "id": "", "created": 0} for chunk in one] == [{**chunk, "id": "", "created": 0} for chunk in two]


async def test_usage_comes_last_and_is_null_before(http: httpx.AsyncClient) -> None:
    *chunks, last = await chunks_of(http, body(stream_options={"include_usage": True}))
    completion = len(pieces(answer(body())))
    prompt = len(pieces(HELLO[0]["content"]))
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_two_choices_take_turns(http: httpx.AsyncClient) -> None:
    chunks = await chunks_of(http, body(n=2))
    assert [chunk["choices"][0]["index"] for chunk in chunks[:6]] == [0, 1, 0, 1, 0, 1]
    for index in (0, 1):
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(delta.get("content", "") for delta in deltas) == answer(body(), index)


async def test_a_cut_by_length_says_so(http: httpx.AsyncClient) -> None:
    chunks = await chunks_of(http, body(max_tokens=3))
    assert len(chunks) == 5
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_a_reasoning_model_thinks_before_it_speaks(http: httpx.AsyncClient) -> None:
    chunks = await chunks_of(http, body("sim-reasoning"))
    kinds = ["".join(chunk["choices"][0]["delta"]) for chunk in chunks[1:-1]]
    assert set(kinds) == {"reasoning_content", "content"}
    assert kinds == sorted(kinds, reverse=True)


async def test_quarts_response_timeout_does_not_cut_a_stream() -> None:
    app = create_simulator()
    app.config["RESPONSE_TIMEOUT"] = 0.001
    request = body("sim-delay-0.05-rate-0", stream=True)
    async with asyncio.timeout(10):  # Quart 0.23 hangs where 0.22 cuts
        response = await app.test_client().post("/v1/chat/completions", json=request)
    assert (await response.get_data(as_text=False)).endswith(b"data: [DONE]\n\n")


# OpenAI's own client


async def test_the_sdk_streams_the_answer(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(**body(n=2), stream=True, stream_options={"include_usage": True})
    texts, usage = ["", ""], None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [answer(body()), answer(body(), 1)]
    assert usage is not None
    assert usage.completion_tokens == sum(len(pieces(text)) for text in texts)


async def test_the_sdk_gets_the_answer_at_once(sdk: openai.AsyncOpenAI) -> None:
    completion = await sdk.chat.completions.create(**body("sim-reasoning", n=2))
    assert [choice.message.content for choice in completion.choices] == [answer(body()), answer(body(), 1)]
    assert completion.choices[0].message.to_dict()["reasoning_content"]
    assert completion.usage is not None


async def test_the_sdk_gets_a_tool_call_and_the_answer_uses_its_result(sdk: openai.AsyncOpenAI) -> None:
    async with sdk.chat.completions.stream(**body(tools=[WEATHER])) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    call = (final.choices[0].message.tool_calls or [])[0]
    assert call.function.name == "weather"
    expected = {"city": HELLO[0]["content"], "days": 1, "metric": True, "units": "C"}
    assert json.loads(call.function.arguments) == expected

    at_once = await sdk.chat.completions.create(**body(tools=[WEATHER]))
    whole = (at_once.choices[0].message.tool_calls or [])[0]
    assert at_once.choices[0].message.content is None
    assert (whole.id, whole.to_dict()["function"]) == (
        call.id,
        {"name": "weather", "arguments": call.function.arguments},
    )

    said = {"role": "assistant", "tool_calls": [whole.to_dict()]}
    result = {"role": "tool", "tool_call_id": call.id, "content": "17 °C, drizzle"}
    second = await sdk.chat.completions.create(**body(messages=[*HELLO, said, result], tools=[WEATHER]))
    assert "17 °C, drizzle" in (second.choices[0].message.content or "")


async def test_a_tool_call_is_streamed_head_first(http: httpx.AsyncClient) -> None:
    role, head, *rest, last = await chunks_of(http, body(tools=[WEATHER]))
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    call = head["choices"][0]["delta"]["tool_calls"][0]
    assert call == {
        "index": 0,
        "id": call["id"],
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    assert all(set(chunk["choices"][0]["delta"]["tool_calls"][0]) == {"index", "function"} for chunk in rest)
    assert last["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("auto", "weather"),
        ("required", "weather"),
        ("none", None),
        ({"type": "function", "function": {"name": "clock"}}, "clock"),
    ],
    ids=["auto", "required", "none", "named"],
)
async def test_tool_choice_decides(sdk: openai.AsyncOpenAI, choice: Any, called: str | None) -> None:
    clock = {"type": "function", "function": {"name": "clock"}}
    completion = await sdk.chat.completions.create(**body(tools=[WEATHER, clock], tool_choice=choice))
    calls = completion.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls] == ([called] if called else [])


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "number"}, 1),
        ({"type": ["string", "null"]}, "Hi"),
        ({"const": 4}, 4),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"type": "array", "items": {"type": "string"}}, ["Hi"]),
        ({"type": "object", "properties": {"a": {"type": "boolean"}}}, {"a": True}),
        ({"$ref": "#/$defs/Place"}, {"name": "Hi"}),
        (True, "Hi"),
    ],
    ids=["number", "types", "const", "anyOf", "array", "object", "$ref", "true"],
)
async def test_arguments_fit_their_schema(sdk: openai.AsyncOpenAI, schema: Any, value: Any) -> None:
    place = {"type": "object", "properties": {"name": {"type": "string"}}}
    parameters = {"type": "object", "properties": {"x": schema}, "$defs": {"Place": place}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    request = body(messages=[{"role": "user", "content": "Hi"}], tools=[tool])
    completion = await sdk.chat.completions.create(**request)
    call = (completion.choices[0].message.tool_calls or [])[0]
    assert json.loads(call.function.arguments) == {"x": value}


async def test_a_schema_that_contains_itself_ends(http: httpx.AsyncClient) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "name": {"type": "string"}}}
    parameters = {"type": "object", "properties": {"x": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": node}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    response = await http.post("/chat/completions", json=body(tools=[tool]))
    assert response.status_code == 200


# Errors


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
        (b'{"model": "sim"}', "messages"),
        (b'{"model": "sim", "messages": []}', "messages"),
        (b'{"messages": [{"role": "user", "content": "Hi"}]}', "model"),
        (b'{"model": "sim", "messages": [{}], "n": 0}', "n"),
        (b'{"model": "sim", "messages": [{}], "max_tokens": "many"}', "max_tokens"),
        (b'{"model": "sim", "messages": [{}], "stop": 3}', "stop"),
    ],
    ids=["cut", "list", "not UTF-8", "deep", "no messages", "empty", "no model", "n", "max_tokens", "stop"],
)
async def test_a_bad_body_is_a_400(http: httpx.AsyncClient, sent: bytes, param: str | None) -> None:
    response = await http.post("/chat/completions", content=sent)
    assert response.status_code == 400
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert (response.json()["error"]["type"], response.json()["error"]["param"]) == ("invalid_request_error", param)


async def test_an_unknown_path_is_a_404_in_openais_shape(http: httpx.AsyncClient) -> None:
    response = await http.post("/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "Invalid URL (POST /v1/nothing)"


async def test_a_missing_model_is_not_found(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        await sdk.chat.completions.create(**body("missing-model"))
    assert refusal.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, openai.AuthenticationError), (429, openai.RateLimitError), (503, openai.InternalServerError)],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_name_may_ask_for_an_error(
    sdk: openai.AsyncOpenAI, status: int, error: type[openai.APIStatusError], stream: bool
) -> None:
    with pytest.raises(error) as refusal:
        await sdk.chat.completions.create(**body(f"sim-error-{status}"), stream=stream)
    assert refusal.value.response.headers.get("retry-after") == (None if status == 401 else "1")
    assert refusal.value.response.headers["x-request-id"]


async def test_a_key_is_asked_for_when_one_is_set() -> None:
    async with serve_simulator(api_key="right") as simulator, httpx.AsyncClient(base_url=simulator.base_url) as http:
        for key, status in (("wrong", 401), ("right", 200)):
            response = await http.get("/models", headers={"Authorization": f"Bearer {key}"})
            assert response.status_code == status
        assert (await http.get("/models")).json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("name", ["sim-fast", "org/any-name"])
async def test_each_name_is_a_model(sdk: openai.AsyncOpenAI, name: str) -> None:
    assert (await sdk.models.retrieve(name)).id == name


async def test_the_models_are_listed(sdk: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in sdk.models.list()]
    assert {"sim", "sim-fast", "sim-slow", "sim-long", "sim-reasoning"} <= set(names)


# The counters


async def test_the_counters_list_the_requests_and_their_outcomes(http: httpx.AsyncClient) -> None:
    headers = {"X-Trace-Id": "abc", "OpenAI-Organization": "org-1", "Authorization": "Bearer secret"}
    await http.post("/chat/completions", json=body("sim-fast", stream=True), headers=headers)
    page = (await http.get("/../counters")).json()
    (seen,) = page["requests"]
    tokens = len(pieces(answer(body())))
    assert 0 <= seen.pop("started") <= seen.pop("closed") <= page["now"]
    assert seen == {
        "number": 1,
        "path": "/v1/chat/completions",
        "headers": {"x-trace-id": "abc", "openai-organization": "org-1", "authorization": True},
        "model": "sim-fast",
        "stream": True,
        "status": 200,
        "tokens": tokens,
        "outcome": "finished",
    }
    assert page["totals"] == {
        "requests": 1,
        "running": 0,
        "finished": 1,
        "closed_by_peer": 0,
        "closed_by_server": 0,
        "tokens": tokens,
    }
    assert "secret" not in (await http.get("/../counters")).text


async def test_the_counters_page_escapes_foreign_text(http: httpx.AsyncClient) -> None:
    await http.post("/chat/completions", json=body("<script>"))
    page = await http.get("/../")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "&lt;script&gt;" in page.text
    assert "<script>" not in page.text


async def test_only_the_last_thousand_requests_are_kept() -> None:
    app = create_simulator()
    counters = app.extensions["simulator"]
    for _ in range(1001):
        counters.close(counters.open("/v1/models", {}), finished=True)
    assert (counters.requests[0].number, len(counters.requests)) == (2, 1000)
    assert counters.totals["requests"] == 1001


@pytest.mark.parametrize(
    ("model", "stream", "status", "tokens"),
    [
        ("sim-head-60", True, None, 0),
        ("sim-delay-60", True, 200, 0),
        ("sim-rate-0.01", True, 200, 1),
        ("sim-length-100000-rate-0", True, 200, 100),
        ("sim-delay-60", False, None, 0),
    ],
    ids=["before the headers", "before the first token", "mid-stream", "in a stream without pause", "not streaming"],
)
async def test_a_client_that_leaves_is_seen_at_once(
    simulator: Simulator, http: httpx.AsyncClient, model: str, stream: bool, status: int | None, tokens: int
) -> None:
    def reached() -> bool:
        return any(
            (e.model, e.status, e.tokens >= tokens) == (model, status, True) for e in simulator.counters.requests
        )

    async with asyncio.timeout(10):
        client = asyncio.create_task(http.post("/chat/completions", json=body(model, stream=stream)))
        await simulator.counters.until(reached)
        client.cancel()
        seen = await simulator.ended(1)
    assert (seen.outcome, seen.status) == ("closed_by_peer", status)
    assert seen.closed is not None


# Starting and stopping


@pytest.mark.parametrize("own_accept", [False, True], ids=["asyncio", "a loop that accepts by itself"])
async def test_leaving_the_block_cuts_every_open_stream(own_accept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if own_accept:
        monkeypatch.setattr(loopback.Listener, "accept", socket.socket.accept)
    before = asyncio.all_tasks()
    async with asyncio.timeout(10), httpx.AsyncClient() as http:
        async with serve_simulator(first_token_delay=60) as simulator:
            url = f"{simulator.base_url}/chat/completions"
            response = await http.send(http.build_request("POST", url, json=body(stream=True)), stream=True)
        assert asyncio.all_tasks() == before
        with pytest.raises(httpx.RemoteProtocolError):
            await response.aread()
        assert (await simulator.ended(1)).outcome == "closed_by_server"
        with pytest.raises(httpx.ConnectError):
            await http.get(url)


async def test_a_client_that_never_reads_does_not_keep_the_server_alive() -> None:
    before = asyncio.all_tasks()
    async with asyncio.timeout(30):
        async with serve_simulator(first_token_delay=0, tokens_per_second=0) as simulator:
            url = httpx.URL(simulator.base_url)
            _, writer = await asyncio.open_connection(url.host, url.port, limit=1)
            content = json.dumps(body("sim-length-100000", stream=True)).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
            writer.write(head.encode() + content)
            await simulator.counters.until(lambda: simulator.counters.totals["tokens"])
            await stalled(simulator)
        assert asyncio.all_tasks() == before
        seen = await simulator.ended(1)
        assert (seen.outcome, seen.tokens < 100_000) == ("closed_by_server", True)
        writer.transport.abort()
        await writer.wait_closed()


async def stalled(simulator: Simulator) -> None:
    before = -1
    while before != simulator.counters.totals["tokens"]:
        before = simulator.counters.totals["tokens"]
        for _ in range(100):  # turns of the loop, in each of which the server could have sent more
            await asyncio.sleep(0)


async def test_a_silent_connection_does_not_keep_the_server_alive() -> None:
    async with asyncio.timeout(10):
        async with serve_simulator() as simulator:
            url = httpx.URL(simulator.base_url)
            reader, writer = await asyncio.open_connection(url.host, url.port)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_two_simulators_share_nothing(simulator: Simulator) -> None:
    async with serve_simulator() as other, httpx.AsyncClient() as http:
        assert other.base_url != simulator.base_url
        await http.get(f"{other.base_url}/models")
        assert (other.counters.totals["requests"], simulator.counters.totals["requests"]) == (1, 0)


async def test_a_port_that_is_taken_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with serve_simulator(port=taken.getsockname()[1]):
            pass
