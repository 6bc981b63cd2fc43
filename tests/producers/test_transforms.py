"""Transforms: what stands between a stream and its log can change, hold back and end it, and nothing goes around it."""

from __future__ import annotations

import asyncio
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI

from quart_openai_sse import Event, StreamEnd, places_of, text_of, with_text
from quart_openai_sse.errors import StreamStopped
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read, tool_call
from tests.conftest import ANN, QUESTION, CreateApp, Serve
from tests.test_docs import ROOT, blocks

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n'


async def through(create_app: CreateApp, serve: Serve, *transforms: Any, upstream: Any, **members: Any) -> Any:
    """The response to a request whose answer goes through *transforms*, and how it ended."""
    app, ai = create_app(upstream)
    for each in transforms:
        ai.transform(each)
    ended: asyncio.Future[StreamEnd] = asyncio.get_running_loop().create_future()
    ai.on_end(ended.set_result)
    client = await serve(app)
    response = await client.post("/v1/chat/completions", json={**BODY, **members})
    return response, await ended


def content_of(item: Any) -> str:
    choices = [] if isinstance(item, Event) else item["choices"]
    return choices[0]["delta"].get("content") or "" if choices else ""


async def louder(items: Any, chat: Any) -> Any:
    async for item in items:
        for choice in [] if isinstance(item, Event) else item["choices"]:
            if text := choice["delta"].get("content"):
                choice["delta"]["content"] = text.upper()
        yield item


async def test_a_transform_changes_what_everybody_sees(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream([chunk("", role="assistant"), chunk("hel"), chunk("lo"), finish()])
    response, end = await through(create_app, serve, louder, upstream=upstream)
    stream = await read(response.content)
    assert (stream.text, stream.outcome, end.text, end.outcome) == ("HELLO", "completed", "HELLO", "completed")
    assert response.content.count(b'"role"') == 1
    assert [each["choices"][0]["finish_reason"] for each in stream.chunks][-1] == "stop"


async def test_an_answer_in_one_piece_does_not_go_around_it(create_app: CreateApp, serve: Serve) -> None:
    response, end = await through(create_app, serve, louder, upstream=ScriptedUpstream("hello"), stream=False)
    assert response.json()["choices"][0]["message"]["content"] == "HELLO"
    assert end.text == "HELLO"


async def test_several_stand_in_the_order_in_which_they_were_registered(create_app: CreateApp, serve: Serve) -> None:
    async def greet(items: Any, chat: Any) -> Any:
        yield f"to {chat.principal.id}: "
        async for item in items:
            yield item

    response, _ = await through(create_app, serve, greet, louder, upstream=ScriptedUpstream("hello"))
    assert (await read(response.content)).text == "TO ANN: HELLO"
    response, _ = await through(create_app, serve, louder, greet, upstream=ScriptedUpstream("hello"))
    assert (await read(response.content)).text == "to ann: HELLO"


async def test_models_of_the_app_and_their_events_go_through_it_too(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("unused"))
    ai.transform(louder)

    @ai.transform
    async def count(items: Any, chat: Any) -> Any:
        async for item in items:
            yield Event("counted", item.data + 1) if isinstance(item, Event) else item

    @ai.model("own")
    async def own(chat: Any) -> Any:
        yield Event("count", 1)
        yield "hello"

    client = await serve(app)
    response = await client.post("/v1/streams?format=text", json={**BODY, "model": "own"}, headers=EVENTS)
    stream = await read(response.content)
    assert [(event.event, event.data) for event in stream.events if event.event.startswith("count")] == [
        ("counted", "2")
    ]
    assert stream.text == "HELLO"


EVENTS = {"Accept": "text/event-stream"}


async def test_usage_and_every_choice_survive(create_app: CreateApp, serve: Serve) -> None:
    async def same(items: Any, chat: Any) -> Any:
        async for item in items:
            yield item

    script = [
        chunk("a"),
        chunk("b", index=1),
        chunk(finish_reason="length"),
        chunk(index=1, finish_reason="stop"),
        USAGE,
        b"data: [DONE]\n\n",
    ]
    response, end = await through(create_app, serve, same, upstream=ScriptedUpstream(script), n=2)
    assert (await read(response.content)).outcome == "completed"
    assert (dict(end.finish_reasons), end.usage["total_tokens"]) == ({0: "length", 1: "stop"}, 3)


# Ending it ----------------------------------------------------------------------------------------------------------


async def test_it_stops_a_stream_with_a_reason_and_the_upstream_with_it(create_app: CreateApp, serve: Serve) -> None:
    async def guard(items: Any, chat: Any) -> Any:
        async for item in items:
            if "bomb" in content_of(item):
                raise StreamStopped("policy")
            yield item

    upstream = ScriptedUpstream([chunk("how to "), chunk("bomb"), asyncio.Event().wait])
    response, end = await through(create_app, serve, guard, upstream=upstream)
    stream = await read(response.content)
    assert (stream.text, stream.error["code"]) == ("how to ", "stopped")
    assert b"[DONE]" not in response.content
    assert (end.outcome, end.reason, upstream.cancelled) == ("stopped", "policy", 1)


async def test_it_ends_a_stream_with_a_finish_reason_of_its_own(create_app: CreateApp, serve: Serve) -> None:
    async def cut(items: Any, chat: Any) -> Any:
        async for item in items:
            yield item
            yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]}
            return

    upstream = ScriptedUpstream([chunk("one"), asyncio.Event().wait])
    response, end = await through(create_app, serve, cut, upstream=upstream)
    stream = await read(response.content)
    assert (stream.text, stream.outcome, dict(end.finish_reasons)) == ("one", "completed", {0: "content_filter"})


async def test_one_that_just_returns_does_not_make_a_cut_look_complete(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def returns(items: Any, chat: Any) -> Any:
        async for item in items:
            yield item
            if content_of(item):
                return

    response, end = await through(create_app, serve, returns, upstream=ScriptedUpstream("one two"))
    assert (end.outcome, end.reason) == ("failed", "model_failed")
    assert (await read(response.content)).outcome == "failed"
    assert "without a finish_reason" in caplog.text


async def test_one_that_swallows_the_finish_does_not_change_it(create_app: CreateApp, serve: Serve) -> None:
    async def only_text(items: Any, chat: Any) -> Any:
        async for item in items:
            if text := content_of(item):
                yield text

    script = [chunk("one"), chunk(finish_reason="length"), b"data: [DONE]\n\n"]
    _, end = await through(create_app, serve, only_text, upstream=ScriptedUpstream(script))
    assert (end.outcome, dict(end.finish_reasons)) == ("completed", {0: "length"})


async def test_what_it_raises_is_the_apps_failure_and_stays_with_us(create_app: CreateApp, serve: Serve) -> None:
    async def broken(items: Any, chat: Any) -> Any:
        async for item in items:
            yield item
            raise ValueError("secret")

    response, end = await through(create_app, serve, broken, upstream=ScriptedUpstream("one two"))
    assert (end.outcome, end.reason) == ("failed", "model_failed")
    assert b"secret" not in response.content


async def test_a_failure_of_the_upstream_passes_through(create_app: CreateApp, serve: Serve) -> None:
    response, end = await through(create_app, serve, louder, upstream=ScriptedUpstream([chunk("one")]))
    assert (end.outcome, end.reason) == ("failed", "upstream_truncated")
    assert (await read(response.content)).text == "ONE"


async def test_when_the_caller_leaves_all_are_closed(create_app: CreateApp, serve: Serve) -> None:
    closed = []

    def watched(name: str) -> Any:
        async def watching(items: Any, chat: Any) -> Any:
            try:
                async for item in items:
                    yield item
            finally:
                closed.append(name)

        return watching

    upstream = ScriptedUpstream([chunk("one"), asyncio.Event().wait])
    app, ai = create_app(upstream)
    over = asyncio.Event()
    for name in ("first", "second"):
        ai.transform(watched(name))

    @ai.observe
    async def note(event: Any) -> None:
        if event.kind == "ended":
            over.set()

    client = await serve(app)
    async with client.stream("POST", "/v1/chat/completions", json=BODY) as response:
        await anext(response.aiter_raw())
    await over.wait()
    assert (sorted(closed), upstream.cancelled) == (["first", "second"], 1)


# Held back ----------------------------------------------------------------------------------------------------------


async def test_the_sdk_puts_together_what_was_rewritten(create_app: CreateApp, serve: Serve) -> None:
    async def redact(items: Any, chat: Any) -> Any:
        async for item in items:
            for choice in item["choices"]:
                for call in choice["delta"].get("tool_calls") or []:
                    call["function"]["arguments"] = call["function"]["arguments"].replace("4711", "****")
            yield item

    app, ai = create_app(ScriptedUpstream([tool_call("pay", {"pin": "4711"}), finish("tool_calls")]))
    ai.transform(redact)
    client = await serve(app)
    async with AsyncOpenAI(
        base_url=f"{client.base_url}/v1", api_key=ANN["Authorization"].removeprefix("Bearer ")
    ) as sdk:
        answer = await sdk.chat.completions.create(model="scripted", messages=QUESTION)  # type: ignore[call-overload]
        [call] = answer.choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == ("pay", '{"pin":"****"}')


# The redaction of the docs -------------------------------------------------------------------------------------------

CARD = "4111 1111 1111 1111"


@pytest.fixture(scope="module")
def redact() -> Any:
    """The transform that docs/how-to/transform-the-stream.md ends with."""
    names = {"Event": Event, "places_of": places_of, "text_of": text_of, "with_text": with_text}
    namespace: dict[str, Any] = {"ai": SimpleNamespace(transform=lambda function: function), **names}
    [code] = [each.code for each in blocks(ROOT / "docs/how-to/transform-the-stream.md") if "class Window" in each.code]
    exec(code, namespace)
    return namespace["redact"]


def of_content(piece: str) -> bytes:
    return chunk(piece)


def of_reasoning(piece: str) -> bytes:
    return chunk(reasoning_content=piece)


def of_arguments(piece: str) -> bytes:
    return chunk(tool_calls=[{"index": 1, "function": {"arguments": piece}}])


def of_parts(piece: str) -> bytes:
    return chunk(content=[{"type": "text", "text": piece}, {"type": "reference", "reference_ids": [1]}])


def of_reasoning_twice(piece: str) -> bytes:
    return chunk(reasoning=piece, reasoning_details=[{"type": "reasoning.text", "index": 0, "text": piece}])


def said_in(delta: dict[str, Any]) -> str:
    """What a client of any kind would show of a delta, and the same text twice if it comes twice."""
    content = delta.get("content") or ""
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    details = "".join(each["text"] for each in delta.get("reasoning_details") or [])
    assert details in ("", delta.get("reasoning"))
    calls = "".join(call["function"]["arguments"] for call in delta.get("tool_calls") or [])
    return content + (delta.get("reasoning_content") or delta.get("reasoning") or "") + calls


@pytest.mark.parametrize("finishing", [False, True], ids=["a finish of its own", "the finish with the last text"])
@pytest.mark.parametrize("kind", [of_content, of_reasoning, of_arguments, of_parts, of_reasoning_twice])
@settings(deadline=None, max_examples=60)
@given(before=st.text("ab .", max_size=50), after=st.text("ab .", max_size=50), data=st.data())
def test_no_cut_gets_a_number_past_the_redaction_of_the_docs(
    redact: Any, kind: Any, finishing: bool, before: str, after: str, data: st.DataObject
) -> None:
    text = f"{before} {CARD} {after}"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=len(text))))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    async def run() -> str:
        async def items() -> Any:
            last = {}
            for part in parts:
                if last:
                    yield last
                last = json.loads(kind(part).removeprefix(b"data: "))
            if finishing:
                last["choices"][0]["finish_reason"] = "stop"
            yield last
            if not finishing:
                yield json.loads(chunk(finish_reason="stop").removeprefix(b"data: "))

        told = ""
        async for item in redact(items(), None):
            for choice in item["choices"]:
                told += said_in(choice["delta"])
        return told

    assert asyncio.run(run()) == re.sub(r"\b\d(?:[ -]?\d){12,18}\b", "[number]", text)
