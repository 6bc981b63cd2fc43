"""The test tools by themselves: what scripts send, and what `read` returns."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest

from quart_openai_sse.errors import (
    OpenAISSEError,
    UpstreamCredentials,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTruncated,
)
from quart_openai_sse.formats import Reading
from quart_openai_sse.formats.text import TextFormat
from quart_openai_sse.logs.entries import END_ID, Batch, End, Entry, Kind
from quart_openai_sse.protocol.sse import SSEDecoder
from quart_openai_sse.simulator import answer
from quart_openai_sse.testing import (
    Gate,
    ScriptedUpstream,
    chunk,
    error,
    finish,
    read,
    refused,
    simulator_thread,
    tool_call,
)
from tests.conftest import ANN, QUESTION, CreateApp

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


# What a client saw ----------------------------------------------------------------------------------------------------


async def test_read_puts_text_reasoning_tool_calls_and_usage_together() -> None:
    wire = chunk("", role="assistant") + chunk(reasoning_content="Let me ") + chunk(reasoning_content="see.")
    wire += chunk("I ask.") + chunk("not this one", index=1)
    wire += tool_call("weather", {"city": "Oslo"}) + tool_call("time", '{"zone": "CET"}', id="call_2", index=1)
    stream = await read(wire + finish("tool_calls", usage=USAGE))
    assert (stream.text, stream.reasoning, stream.outcome) == ("I ask.", "Let me see.", "completed")
    assert stream.tool_calls == [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": '{"zone": "CET"}'}},
    ]
    assert (stream.finish_reason, stream.usage) == ("tool_calls", USAGE)


async def test_read_understands_the_text_format() -> None:
    spoken = TextFormat(Reading(ids=True))
    wire = spoken.encode(Batch(1, [Entry(chunk("Hi")[6:-2], 0.5), Entry(b"[1]", 0.5, kind=Kind.EVENT, name="sources")]))
    wire += spoken.end(End("completed", finish_reasons={0: "stop"}, usage=USAGE))
    stream = await read(wire)
    assert (stream.text, stream.outcome, stream.ids) == ("Hi", "completed", ["1", "2", END_ID])
    assert (stream.finish_reason, stream.usage, stream.tool_calls) == ("stop", USAGE, [])
    assert [event.event for event in stream.events] == ["delta", "sources", "completed"]


async def test_a_stream_that_just_ends_is_cut() -> None:
    stream = await read(chunk("Half an"))
    assert (stream.text, stream.outcome, stream.finish_reason, stream.usage) == ("Half an", "cut", None, None)


async def test_an_error_within_a_stream_is_read_as_a_failure() -> None:
    stream = await read(chunk("Half an") + error("GPU lost", code="gpu"))
    assert (stream.text, stream.outcome) == ("Half an", "failed")
    assert stream.error == {"message": "GPU lost", "type": "server_error", "param": None, "code": "gpu"}


def test_a_tool_call_comes_in_pieces_as_openai_sends_it() -> None:
    events = SSEDecoder().feed(tool_call("weather", {"city": "Oslo"}, id="call_9", index=2))
    calls = [json.loads(event.data)["choices"][0]["delta"]["tool_calls"][0] for event in events]
    assert [call["index"] for call in calls] == [2, 2, 2]
    assert [call.get("id") for call in calls] == ["call_9", None, None]
    assert [call["function"].get("name") for call in calls] == ["weather", None, None]
    assert "".join(call["function"]["arguments"] for call in calls) == '{"city":"Oslo"}'


# Scripts --------------------------------------------------------------------------------------------------------------

BODY = {"messages": QUESTION}


async def ask(create_app: CreateApp, upstream: ScriptedUpstream, **members: Any) -> tuple[Any, dict[str, Any]]:
    app, _ = create_app(upstream)
    async with app.test_app() as running:
        response = await running.test_client().post("/v1/chat/completions", json={**BODY, **members}, headers=ANN)
        return response, await response.get_json()


async def test_a_script_with_another_2xx_is_played(create_app: CreateApp) -> None:
    response, body = await ask(create_app, ScriptedUpstream("Hello.", status=201))
    assert response.status_code == 200
    assert body["choices"][0]["message"]["content"] == "Hello."


@pytest.mark.parametrize(
    ("status", "kind"), [(401, UpstreamCredentials), (429, UpstreamRefused), (500, UpstreamRefused)]
)
async def test_a_refusal_is_the_error_that_the_real_upstream_makes_of_it(
    status: int, kind: type[OpenAISSEError], create_app: CreateApp
) -> None:
    step = refused(status, "No.", code="why", retry_after=7)
    assert type(step) is kind
    response, body = await ask(create_app, ScriptedUpstream([step]), stream=True)
    assert response.status_code == (502 if status == 401 else status)
    if status != 401:
        assert (body["error"]["message"], body["error"]["code"]) == ("No.", "why")
        assert response.headers["Retry-After"] == "7"


async def test_a_gate_holds_the_script_until_it_is_opened(create_app: CreateApp) -> None:
    gate = Gate()
    upstream = ScriptedUpstream([chunk("One"), gate, chunk(" two"), finish()], [gate, chunk("three"), finish()])
    app, ai = create_app(upstream)
    async with app.test_app() as running, asyncio.timeout(10):
        asking = asyncio.ensure_future(
            running.test_client().post("/v1/streams", json=BODY, headers={**ANN, "Accept": "text/event-stream"})
        )
        await gate.reached()
        assert upstream.running == 1
        gate.open()
        response = await asking
        assert (await read(await response.get_data())).text == "One two"
        again = await running.test_client().post("/v1/chat/completions", json=BODY, headers=ANN)
        assert (await again.get_json())["choices"][0]["message"]["content"] == "three"  # open once, open for good
    assert ai.config(app).model == "scripted"


async def test_a_request_without_stream_gets_the_script_in_one_piece(create_app: CreateApp) -> None:
    script = [chunk("", role="assistant"), chunk("It"), tool_call("weather"), finish("tool_calls", usage=USAGE)]
    response, body = await ask(create_app, ScriptedUpstream(script))
    assert response.status_code == 200
    (choice,) = body["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("It", "tool_calls")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": "{}"}
    assert (body["object"], body["usage"]) == ("chat.completion", USAGE)


@pytest.mark.parametrize(
    ("script", "kind"),
    [([chunk("Half")], UpstreamTruncated), ([chunk("Half"), error("GPU lost")], UpstreamFailed)],
    ids=["cut", "failed"],
)
async def test_without_stream_a_fault_is_a_status(
    script: list[Any], kind: type[OpenAISSEError], create_app: CreateApp
) -> None:
    response, body = await ask(create_app, ScriptedUpstream(script))
    assert (response.status_code, body["error"]["code"]) == (502, kind.code)


async def test_without_stream_bytes_of_the_scripts_own_are_sent_as_they_are(create_app: CreateApp) -> None:
    whole = b'{"choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}]}'
    response, body = await ask(create_app, ScriptedUpstream([whole[:9], whole[9:]]))
    assert (response.status_code, body["choices"][0]["message"]) == (200, {"content": "hi"})


# The simulator in a thread --------------------------------------------------------------------------------------------


def test_a_simulator_in_a_thread_needs_no_loop_and_leaves_nothing_behind() -> None:
    before = threading.active_count()
    body = {"model": "sim", "messages": QUESTION}
    with simulator_thread(first_token_delay=0, tokens_per_second=0, api_key="k") as simulator:
        url = f"{simulator.base_url}/chat/completions"
        assert httpx.post(url, json=body, trust_env=False).status_code == 401
        said = httpx.post(url, json=body, headers={"Authorization": "Bearer k"}, trust_env=False).json()
        asyncio.run(asyncio.wait_for(simulator.ended(2), 10))
    assert said["choices"][0]["message"]["content"] == answer(body)
    assert threading.active_count() == before


async def test_a_simulator_in_a_thread_is_awaited_from_another_loop() -> None:
    body = {"model": "sim-long-rate-50", "messages": QUESTION, "stream": True}
    with simulator_thread(first_token_delay=0) as simulator:
        async with asyncio.timeout(10), httpx.AsyncClient(base_url=simulator.base_url, trust_env=False) as http:
            async with http.stream("POST", "/chat/completions", json=body):
                await simulator.until(lambda: simulator.counters.totals["tokens"] >= 3)
            recorded = await simulator.ended(1)
    assert recorded.outcome == "closed_by_peer"
