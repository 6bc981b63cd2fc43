"""The official SDK against the extension in front of the simulator: every way to ask, byte for byte."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from quart_openai_sse.simulator import Simulator, answer
from tests.conftest import CreateApp, Serve

MESSAGES: list[Any] = [{"role": "user", "content": 'How far is the moon? "Tell" me — 月 🌕'}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "search",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
        },
    }
]
ASKED = {"model": "sim-fast", "messages": MESSAGES}


@pytest.fixture
async def client(create_app: CreateApp, serve: Serve, simulator: Simulator) -> AsyncIterator[openai.AsyncOpenAI]:
    """The SDK, as ann."""
    app, ai = create_app(base_url=simulator.base_url, max_streams_per_principal=2)

    @ai.model("own")
    async def own(chat):
        async for chunk in chat.call("sim-fast", chat.messages):
            yield chunk

    http = await serve(app)
    base_url = str(http.base_url.join("/v1"))
    async with openai.AsyncOpenAI(base_url=base_url, api_key="token-ann", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("model", ["sim-fast", "own"])
@pytest.mark.parametrize("include_usage", [True, False])
async def test_streaming(client: openai.AsyncOpenAI, model: str, include_usage: bool) -> None:
    options = {"include_usage": True} if include_usage else openai.omit
    text, usages, roles, finishes = "", [], [], []
    stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True, stream_options=options)
    async for chunk in stream:
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            text += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            finishes += [choice.finish_reason] if choice.finish_reason else []
    assert text == answer(ASKED)
    assert (roles, finishes) == (["assistant"], ["stop"])
    assert len(usages) == include_usage


@pytest.mark.parametrize("model", ["sim-fast", "own"])
async def test_the_stream_helper(client: openai.AsyncOpenAI, model: str) -> None:
    async with client.chat.completions.stream(model=model, messages=MESSAGES) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == answer(ASKED)
    assert final.choices[0].message.role == "assistant"


@pytest.mark.parametrize("model", ["sim-fast", "own"])
async def test_an_answer_in_one_piece(client: openai.AsyncOpenAI, model: str) -> None:
    completion = await client.chat.completions.create(model=model, messages=MESSAGES)
    assert completion.choices[0].message.content == answer(ASKED)
    assert completion.usage.total_tokens > 0


async def test_two_choices(client: openai.AsyncOpenAI) -> None:
    texts = {0: "", 1: ""}
    async for chunk in await client.chat.completions.create(**ASKED, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: answer(ASKED), 1: answer(ASKED, 1)}


async def test_a_tool_call(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(**ASKED, tools=TOOLS) as stream:
        final = await stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls
    assert (final.choices[0].finish_reason, call.function.name) == ("tool_calls", "search")
    assert MESSAGES[0]["content"] in json.loads(call.function.arguments)["query"]
    result = {"role": "tool", "tool_call_id": call.id, "content": "384,400 km"}
    messages = [*MESSAGES, final.choices[0].message.model_dump(exclude_none=True), result]
    second = await client.chat.completions.create(model="sim-fast", messages=messages)
    assert "384,400 km" in second.choices[0].message.content


async def test_models(client: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in await client.models.list()]
    assert names[0] == "own"
    assert "sim-fast" in names
    assert [(await client.models.retrieve(name)).id for name in ("own", "sim-fast")] == ["own", "sim-fast"]
    with pytest.raises(openai.NotFoundError) as missing:
        await client.models.retrieve("org/nothing")
    assert missing.value.code == "model_not_found"


async def test_cancelling_mid_stream(client: openai.AsyncOpenAI, simulator: Simulator) -> None:
    stream = await client.chat.completions.create(model="sim-long-rate-50", messages=MESSAGES, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            await stream.close()
            break
    assert (await simulator.ended(1)).outcome == "closed_by_peer"


async def test_errors_are_the_sdks_own(client: openai.AsyncOpenAI) -> None:
    for stream in (True, False):
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="missing-model", messages=MESSAGES, stream=stream)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="sim-fast", messages=[], stream=stream)
        assert bad.value.param == "messages"
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="sim-error-429", messages=MESSAGES, stream=stream)
        with pytest.raises(openai.InternalServerError) as ours:
            await client.chat.completions.create(model="sim-error-401", messages=MESSAGES, stream=stream)
        assert ours.value.status_code == 502
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="nobody").models.list()


async def test_too_many_streams_are_a_rate_limit(client: openai.AsyncOpenAI) -> None:
    running = [
        await client.chat.completions.create(model="sim-long-rate-50", messages=MESSAGES, stream=True) for _ in range(2)
    ]
    with pytest.raises(openai.RateLimitError) as refused:
        await client.chat.completions.create(**ASKED, stream=True)
    assert refused.value.code == "too_many_streams"
    for stream in running:
        await stream.close()
