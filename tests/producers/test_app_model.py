"""The app's own models: what they may yield, what they call, how they end."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel
from quart import current_app

from quart_openai_sse import Event, StreamEnd
from quart_openai_sse import finish as end
from quart_openai_sse.errors import InvalidRequest, StreamStopped, UpstreamTruncated
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read
from tests.conftest import QUESTION, CreateApp, Serve
from tests.producers.relays import read_all, relay_of, start

BODY = {"model": "own", "messages": QUESTION, "stream": True}


async def stream_of(create_app: CreateApp, serve: Serve, model: Any, *scripts: Any, **members: Any) -> Any:
    """What a client of OpenAI's route sees of *model*, and the upstream it called."""
    upstream = ScriptedUpstream(*scripts)
    app, ai = create_app(upstream)
    ai.model("own")(model)
    client = await serve(app)
    response = await client.post("/v1/chat/completions", json={**BODY, **members})
    return response, await read(response.content), upstream


async def test_strings_become_chunks_with_one_role_and_one_finish(create_app: CreateApp, serve: Serve) -> None:
    async def own(chat):
        yield "Hello"
        yield ""
        yield " there."

    response, seen, _ = await stream_of(create_app, serve, own)
    assert [each["choices"][0] for each in seen.chunks] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None},
        {"index": 0, "delta": {"content": "Hello"}, "finish_reason": None},
        {"index": 0, "delta": {"content": " there."}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    ]
    assert {each["id"] for each in seen.chunks} == {f"chatcmpl-{response.headers['x-stream-id']}"}
    assert {each["model"] for each in seen.chunks} == {"own"}
    assert seen.outcome == "completed"


@pytest.mark.parametrize("items", [[], [None], ["", None], [end("stop")], [end("tool_calls", {"a": 1})]])
async def test_a_model_that_says_nothing_has_failed(
    create_app: CreateApp, serve: Serve, items: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def own(chat):
        for item in items:
            yield item

    response, _, _ = await stream_of(create_app, serve, own)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["message"]) == (500, "model_failed", "The app's model failed.")
    assert "yielded neither text nor a tool call nor an event" in caplog.text


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_a_reason_may_say_why_an_answer_is_empty(create_app: CreateApp, serve: Serve, reason: str) -> None:
    async def own(chat):
        yield end(reason, {"prompt_tokens": 1, "completion_tokens": 2})

    _, seen, _ = await stream_of(create_app, serve, own)
    assert (seen.outcome, seen.finish_reason, seen.text) == ("completed", reason, "")


async def test_a_library_without_a_reason_was_cut(create_app: CreateApp, serve: Serve) -> None:
    async def own(chat):
        yield "Half an"
        yield end(None)

    _, seen, _ = await stream_of(create_app, serve, own)
    assert (seen.outcome, seen.error["code"], seen.text) == ("failed", "upstream_truncated", "Half an")


async def test_sdk_objects_and_mappings_are_chunks_too(create_app: CreateApp, serve: Serve) -> None:
    async def own(chat):
        yield ChatCompletionChunk.model_validate(
            {
                "id": "other",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "other",
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": "from"}, "finish_reason": None}],
            }
        )
        last = {"index": 0, "delta": {"content": " both"}, "finish_reason": "length"}
        yield {"id": "other", "choices": [last], "new": 1}

    _, seen, _ = await stream_of(create_app, serve, own)
    assert seen.text == "from both"
    assert seen.chunks[2]["new"] == 1
    assert [each["choices"][0]["finish_reason"] for each in seen.chunks] == [None, None, None, "length"]


async def test_two_calls_are_one_stream_with_their_usage_summed(create_app: CreateApp, serve: Serve) -> None:
    def answered(text: str, tokens: int, ident: str) -> list[bytes]:
        usage = {"id": ident, "choices": [], "usage": {"total_tokens": tokens, "details": {"cached": 1}}}
        script = [chunk("", role="assistant"), chunk(text), chunk(finish_reason="stop")]
        named = [step.replace(b"chatcmpl-scripted", ident.encode()) for step in script]
        return [*named, b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n"]

    async def own(chat):
        async for each in chat.call("one", chat.messages):
            yield each
        yield "; "
        async for each in chat.call("two", chat.messages, temperature=0):
            yield each

    _, seen, upstream = await stream_of(
        create_app,
        serve,
        own,
        answered("first", 3, "a"),
        answered("second", 4, "b"),
        stream_options={"include_usage": True},
    )
    assert seen.text == "first; second"
    roles = [each["choices"][0]["delta"].get("role") for each in seen.chunks if each["choices"]]
    assert roles == ["assistant", None, None, None, None]
    assert [each["usage"] for each in seen.chunks if each.get("usage")] == [
        {"total_tokens": 7, "details": {"cached": 2}}
    ]
    assert [request["model"] for request in upstream.requests] == ["one", "two"]
    assert upstream.requests[1]["temperature"] == 0
    assert all(request["stream_options"] == {"include_usage": True} for request in upstream.requests)


async def test_a_call_can_be_awaited_for_its_message(create_app: CreateApp, serve: Serve) -> None:
    async def own(chat):
        call = chat.call("one", chat.messages)
        message = await call
        yield f"{message['content']}|{call.finish_reason}|{message['role']}"

    _, seen, _ = await stream_of(create_app, serve, own, "the whole message")
    assert seen.text == "the whole message|stop|assistant"


async def test_a_model_can_handle_the_upstreams_refusal(create_app: CreateApp, serve: Serve) -> None:
    async def own(chat):
        try:
            await chat.call("one", chat.messages)
        except Exception as error:
            yield type(error).__name__

    _, seen, _ = await stream_of(create_app, serve, own, [chunk("half")])
    assert seen.text == "UpstreamTruncated"
    assert seen.outcome == "completed"


@pytest.mark.parametrize("after_output", [False, True])
async def test_a_model_that_raises_is_a_failure_and_says_nothing_of_why(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture, after_output: bool
) -> None:
    async def own(chat):
        if after_output:
            yield "so far"
        raise RuntimeError("secret detail")

    response, _, _ = await stream_of(create_app, serve, own)
    assert response.status_code == (200 if after_output else 500)
    assert b"secret detail" not in response.content
    assert b'"code":"model_failed"' in response.content
    assert "[DONE]" not in response.text
    assert "secret detail" in caplog.text  # for the developer, in the log
    [line] = [record for record in caplog.records if record.name == "quart_openai_sse.stream"]
    assert (line.stream_outcome, line.stream_reason) == ("failed", "model_failed")


class Odd(BaseException):
    """An exception that `except Exception` does not catch."""


@pytest.mark.parametrize(
    "error",
    [Odd("odd"), pytest.fail.Exception("odd"), BaseExceptionGroup("odd", [Odd()]), GeneratorExit("odd")],
    ids=repr,
)
@pytest.mark.parametrize("where", ["a model", "a model after output", "a transform"])
async def test_exceptions_that_do_not_derive_from_exception_fail_the_stream_too(
    create_app: CreateApp, serve: Serve, error: BaseException, where: str
) -> None:
    app, ai = create_app(ScriptedUpstream())

    @ai.model("own")
    async def own(chat):
        if where != "a model":
            yield "so far"
        raise error

    if where == "a transform":

        @ai.transform
        async def transform(items, chat):
            async for item in items:
                yield item
                raise error

    client = await serve(app)
    async with asyncio.timeout(10):
        response = await client.post("/v1/chat/completions", json=BODY)
    code = "internal_error" if isinstance(error, GeneratorExit) else "model_failed"
    assert response.status_code == (500 if where == "a model" else 200)
    assert f'"code":"{code}"' in response.text


def test_a_system_exit_ends_the_event_loop_and_the_stream_too() -> None:
    async def own(chat):
        yield "so far"
        raise SystemExit(3)

    async def begin() -> None:
        relay = await stack.enter_async_context(relay_of(own))
        _, reader = await start(relay)
        begun.append((relay, reader, asyncio.create_task(read_all(reader))))
        await asyncio.Event().wait()

    async def finish() -> tuple[str, str]:
        [(relay, reader, reading)] = begun
        async with asyncio.timeout(10), stack:
            outcome = await reading
            await relay.readers.leave(reader)
        return outcome

    begun, stack = [], AsyncExitStack()
    with asyncio.Runner() as runner:
        with pytest.raises(SystemExit):
            runner.run(begin())
        assert runner.run(finish()) == ("so far", "failed internal_error")


async def test_a_model_can_refuse_with_an_error_of_ours(create_app: CreateApp, serve: Serve) -> None:
    async def own(chat):
        raise InvalidRequest("Too many messages.", param="messages")
        yield

    response, _, _ = await stream_of(create_app, serve, own)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"


@pytest.mark.parametrize(
    "item",
    [
        5,
        b"bytes",
        SimpleNamespace(),
        {"content": "no choices"},
        {"choices": ["x"]},
        {"choices": [{"delta": "x"}]},
        {"choices": [{"delta": {"content": object()}}]},
        SimpleNamespace(model_dump=lambda **_: {"content": "as LangChain has it"}),
        Event("e", object()),
    ],
)
async def test_what_is_no_chunk_is_the_models_failure(
    create_app: CreateApp, serve: Serve, item: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def own(chat):
        yield "so far"
        yield item

    _, seen, _ = await stream_of(create_app, serve, own)
    assert (seen.outcome, seen.error["code"]) == ("failed", "model_failed")
    # Developers are told the line of the `yield`, and callers nothing of the app's code.
    assert seen.error["message"] == "The app's model failed."
    assert f"Yielded in {__file__}, line {own.__code__.co_firstlineno + 2}, in own." in caplog.text


@pytest.mark.parametrize(
    "name", ["", "delta", "completed", "failed", "stopped", "error", "message", "open", "a\nb", "\0"]
)
def test_an_app_event_can_not_take_a_name_of_ours(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be named"):
        Event(name)


async def test_a_stopped_model_is_closed_with_everything_it_opened(create_app: CreateApp, serve: Serve) -> None:
    forever, closed = asyncio.Event(), []
    upstream = ScriptedUpstream([chunk("hi"), forever.wait])
    app, ai = create_app(upstream)

    @ai.model("own")
    async def own(chat):
        try:
            async for each in chat.call("one", chat.messages):
                yield each
        finally:
            closed.append(asyncio.current_task())
            assert current_app.name  # the app context is still there

    client = await serve(app)
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    async with client.stream("GET", url) as response:
        body = response.aiter_raw()
        first = b""
        while b"delta" not in first:
            first += await anext(body)
        await client.delete(url)
        seen = await read(body)
    assert seen.outcome == "stopped"
    assert len(closed) == 1
    assert (upstream.running, upstream.cancelled) == (0, 1)


@pytest.mark.parametrize("how", ["stopped", "the client disconnects"])
async def test_a_stream_that_is_whole_is_not_stopped_while_its_model_cleans_up(
    caplog: pytest.LogCaptureFixture, how: str
) -> None:
    cleaning, cleaned, ends = asyncio.Event(), asyncio.Event(), []

    async def own(chat):
        try:
            yield "whole"
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await cleaned.wait()

    async def finish_early(items, chat):
        yield await anext(items)
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

    async with asyncio.timeout(30), relay_of(own, transforms=[finish_early], on_end=ends.append) as relay:
        handle, reader = await start(relay)
        reading = asyncio.create_task(read_all(reader))
        await cleaning.wait()
        if how == "stopped":
            await relay.stop(handle, "by its user")
        else:
            reading.cancel()
            await relay.readers.leave(reader)
        for _ in range(5):  # turns of the event loop: the interruption is delivered
            await asyncio.sleep(0)
        cleaned.set()
        if how == "stopped":
            assert await reading == ("whole", "completed")
            await relay.readers.leave(reader)
    assert [(end.outcome, end.text, end.finish_reasons) for end in ends] == [("completed", "whole", {0: "stop"})]
    assert "does not end" not in caplog.text


async def test_a_call_left_half_way_is_closed_too(create_app: CreateApp, serve: Serve) -> None:
    forever = asyncio.Event()

    async def own(chat):
        async for each in chat.call("one", chat.messages):
            yield each
            break
        yield " and more"

    _, seen, upstream = await stream_of(create_app, serve, own, [chunk("hi"), forever.wait])
    assert (seen.text, seen.outcome) == ("hi and more", "completed")
    assert (upstream.running, upstream.cancelled) == (0, 1)


async def test_the_stream_of_another_sdk_that_was_cut_is_not_complete(create_app: CreateApp, serve: Serve) -> None:
    """openai-python raises nothing when its stream breaks off: only the missing finish_reason tells."""

    async def own(chat):
        for text in ("The answer", " is not"):
            yield {"id": "theirs", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}

    _, seen, _ = await stream_of(create_app, serve, own)
    assert (seen.text, seen.outcome, seen.error["code"]) == ("The answer is not", "failed", "upstream_truncated")


@pytest.mark.parametrize("how", ["yields on", "returns"])
async def test_a_model_that_will_not_be_stopped_says_nothing_more(
    create_app: CreateApp, serve: Serve, how: str
) -> None:
    app, ai = create_app(ScriptedUpstream())
    forever, over = asyncio.Event(), asyncio.Event()

    @ai.model("own")
    async def own(chat):
        try:
            yield "so far"
            await forever.wait()
        except asyncio.CancelledError:
            while how == "yields on":
                yield "late"
                await asyncio.sleep(0)
        finally:
            over.set()

    client = await serve(app)
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    async with client.stream("GET", url) as response:
        body = response.aiter_raw()
        first = await anext(body)
        while b"delta" not in first:
            first += await anext(body)
        await client.delete(url)
        seen = await read(first + b"".join([data async for data in body]))
    await over.wait()
    assert (seen.text, seen.outcome) == ("so far", "stopped")
    again = await read((await client.get(url, params={"format": "openai"})).content)
    assert [each["choices"][0]["finish_reason"] for each in again.chunks] == [None, None]


async def test_a_call_that_is_given_up_is_closed_at_once(create_app: CreateApp, serve: Serve) -> None:
    forever, running = asyncio.Event(), []
    upstream = ScriptedUpstream([chunk("slow"), forever.wait])
    app, ai = create_app(upstream)

    @ai.model("own")
    async def own(chat):
        try:
            async with asyncio.timeout(0.01):
                await chat.call("slow", chat.messages)
        except TimeoutError:
            running.append(upstream.running)
        async with chat.call("left", chat.messages) as chunks:
            async for _ in chunks:
                break
        running.append(upstream.running)
        chat.call("never asked", chat.messages)
        yield "done"

    client = await serve(app)
    seen = await read((await client.post("/v1/chat/completions", json=BODY)).content)
    assert (seen.text, seen.outcome) == ("done", "completed")
    assert running == [0, 0]
    assert len(upstream.requests) == 2


async def test_a_call_that_grows_too_long_is_no_empty_message(create_app: CreateApp, serve: Serve) -> None:
    async def own(chat):
        yield (await chat.call("long", chat.messages)).get("content", "nothing")

    upstream = ScriptedUpstream([*(chunk("x" * 1000) for _ in range(20)), finish()])
    app, ai = create_app(upstream, max_bytes=10_000)
    ai.model("own")(own)
    response = await (await serve(app)).post("/v1/chat/completions", json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "stream_too_long")


async def test_a_model_that_never_waits_can_be_stopped(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream())

    @ai.model("own")
    async def own(chat):
        while True:
            yield "on and on "

    client = await serve(app)
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    assert (await client.delete(url)).status_code == 204
    seen = await read((await client.get(url)).content)
    assert seen.outcome == "stopped"


async def test_an_answer_in_one_piece_is_put_together(create_app: CreateApp, serve: Serve) -> None:
    async def own(chat):
        yield Event("sources", [])
        yield "Hello"
        yield {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]}}]}

    response, _, _ = await stream_of(create_app, serve, own, stream=False)
    [choice] = response.json()["choices"]
    assert choice["message"]["content"] == "Hello"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f"}
    assert response.json()["object"] == "chat.completion"


async def test_lone_surrogates_survive(create_app: CreateApp, serve: Serve) -> None:
    async def own(chat):
        yield "half \ud83d"

    response, _, _ = await stream_of(create_app, serve, own)
    assert b"half \\ud83d" in response.content
    assert response.content.endswith(b"data: [DONE]\n\n")


async def test_an_emoji_that_two_chunks_hold_is_stored_whole_and_a_half_one_can_be_stored(
    create_app: CreateApp, serve: Serve
) -> None:
    ends: list[StreamEnd] = []
    app, ai = create_app(ScriptedUpstream([chunk("moon \ud83c"), chunk("\udf15, cut \ud83c"), finish()]))
    ai.on_end(ends.append)
    client = await serve(app)
    await client.post("/v1/chat/completions", json={**BODY, "model": "scripted"})
    [end] = ends
    assert (end.text, end.message["content"]) == ("moon 🌕, cut \ufffd", "moon 🌕, cut \ud83c")


async def test_an_agent_is_resumable_stoppable_and_stored(create_app: CreateApp, serve: Serve) -> None:
    """Two upstream calls, a tool between them, a sources event; read from the middle, and kept by on_end."""
    gate, ends = asyncio.Event(), []
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "search", "arguments": '{"q":1}'}}
    first = [chunk(tool_calls=[call]), finish("tool_calls")]
    upstream = ScriptedUpstream(first, [chunk("It is "), gate.wait, chunk("far."), finish()])
    app, ai = create_app(upstream)

    @ai.model("own")
    async def own(chat):
        message = await chat.call("one", chat.messages, tools=[])
        yield Event("sources", [message["tool_calls"][0]["function"]["arguments"]])
        tool = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "far"}
        async for each in chat.call("two", [*chat.messages, message, tool]):
            yield each

    @ai.on_end
    async def store(end: StreamEnd) -> None:
        ends.append(end)

    client = await serve(app)
    url = (await client.post("/v1/streams", json={**BODY, "thread": "t"})).json()["url"]
    body = b""
    async with client.stream("GET", url) as response:
        async for data in response.aiter_raw():
            body += data
            if b"It is" in body:
                break
    before = await read(body)
    gate.set()
    after = await read((await client.get(url, headers={"Last-Event-ID": before.last_event_id})).content)
    assert before.text + after.text == "It is far."
    assert [event.event for event in before.events] == ["sources", "delta"]
    assert after.outcome == "completed"
    [end] = ends
    assert (end.outcome, end.text, end.thread) == ("completed", "It is far.", "t")
    assert end.events == (("sources", ['{"q":1}']),)
    assert end.record.chunks == 4  # a role, two pieces, an end; an event is no chunk
    assert end.message == {"role": "assistant", "content": "It is far."}
    assert upstream.requests[1]["messages"][1]["tool_calls"][0]["id"] == "call_1"
    assert logging.getLogger("quart_openai_sse").name


# What it may yield ----------------------------------------------------------------------------------------------------


class Shouted(str):
    """A string of another class, as Markup and LangChain's `.text` are."""

    def __str__(self) -> str:
        return "not this"


@dataclass
class Source:
    title: str


class Page(BaseModel):
    source: str
    number: int


async def test_strings_of_other_classes_are_text_and_none_is_nothing(create_app: CreateApp, serve: Serve) -> None:
    async def own(chat):
        yield None
        yield Shouted("Hel")
        yield None
        yield {"choices": [{"delta": {"content": Shouted("lo")}}]}

    _, seen, _ = await stream_of(create_app, serve, own)
    assert (seen.text, seen.outcome) == ("Hello", "completed")


async def test_an_event_holds_what_json_can_hold(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream())
    data = {"sources": [Source("Moon")], "page": Page(source="a", number=1), Shouted("by"): Shouted("me")}

    @ai.model("own")
    async def own(chat):
        yield Event("found", data)
        yield Event("nothing")

    client = await serve(app)
    response = await client.post("/v1/streams", json=BODY, headers={"Accept": "text/event-stream"})
    found, nothing, _ = (await read(response.content)).events
    expected = {"sources": [{"title": "Moon"}], "page": {"source": "a", "number": 1}, "by": "me"}
    assert (found.event, json.loads(found.data)) == ("found", expected)
    assert (nothing.event, nothing.data) == ("nothing", "null")


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Whole.", "tool_calls": [CALL]},
            "finish_reason": "tool_calls",
            "logprobs": None,
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


@pytest.mark.parametrize("answer", [ANSWER, ChatCompletion.model_validate(ANSWER)], ids=["mapping", "object"])
async def test_a_whole_answer_of_an_sdk_is_that_answer(create_app: CreateApp, serve: Serve, answer: Any) -> None:
    async def own(chat):
        yield answer

    _, seen, _ = await stream_of(create_app, serve, own, stream_options={"include_usage": True})
    assert (seen.text, seen.tool_calls, seen.outcome) == ("Whole.", [CALL], "completed")
    assert (seen.finish_reason, seen.usage) == ("tool_calls", ANSWER["usage"])
    [call] = [
        each for chunk in seen.chunks if chunk["choices"] for each in chunk["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert call["index"] == 0


# Its calls ------------------------------------------------------------------------------------------------------------

THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
REFERENCE = {"type": "reference", "reference_ids": [1]}


async def test_a_calls_message_goes_back_to_the_upstream_without_what_was_made_of_its_parts(
    create_app: CreateApp, serve: Serve
) -> None:
    messages = []

    async def own(chat):
        call = chat.call("one", chat.messages)
        messages.append(await call)
        assert (call.reasoning, call.details) == ("Hm.x", {"references": [REFERENCE], "citations": ["a"]})
        await chat.call("two", [*chat.messages, messages[0]])
        messages[0]["content"] = "Changed."
        yield (await chat.call("three", [messages[0]]))["content"]

    first = [
        chunk([THOUGHT, {"type": "text", "text": "Yes"}, REFERENCE]),
        chunk(".", reasoning_content="x"),
        CITED,
        finish(),
    ]
    _, seen, upstream = await stream_of(create_app, serve, own, first, "second", "third")
    assert seen.text == "third"
    own_members = {"role": "assistant", "content": "Yes.", "reasoning_content": "x"}
    assert messages[0] == {**own_members, "content": "Changed.", "reasoning": "Hm.", "references": [REFERENCE]}
    assert upstream.requests[1]["messages"][-1] == own_members
    assert upstream.requests[2]["messages"] == [{**own_members, "content": "Changed."}]


CITED = b'data: {"choices":[],"citations":["a"]}\n\n'


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("idents", [("a", "b", "c"), ("", "", ""), ("a", "a", "a")])
async def test_a_calls_chunks_are_its_own_whatever_their_ids(
    create_app: CreateApp, serve: Serve, idents: tuple[str, ...], copied: bool
) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}

    async def own(chat):
        for name in ("one", "two"):
            async for each in chat.call(name, chat.messages):
                yield {**each, "choices": list(each["choices"])} if copied else each

    def script(*, cut: bool = False) -> list[bytes]:
        steps = [chunk("x", role="assistant"), chunk("y"), *([] if cut else [finish(usage=usage)])]
        return [step.replace(b"chatcmpl-scripted", ident.encode()) for step, ident in zip(steps, idents, strict=False)]

    _, seen, _ = await stream_of(create_app, serve, own, script(), script(), stream_options={"include_usage": True})
    assert (seen.text, seen.outcome) == ("xyxy", "completed")
    assert seen.usage == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
    _, seen, _ = await stream_of(create_app, serve, own, script(), script(cut=True))
    assert (seen.text, seen.outcome) == ("xyxy", "failed")


async def test_a_stream_of_another_client_with_a_calls_id_is_not_the_calls(create_app: CreateApp, serve: Serve) -> None:
    piece = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "choices": [{"delta": {"content": "cut"}}]}

    async def own(chat):
        await chat.call("one", chat.messages)
        yield piece

    _, seen, _ = await stream_of(create_app, serve, own)
    assert (seen.text, seen.outcome, seen.error["code"]) == ("cut", "failed", "upstream_truncated")


async def test_a_calls_chunks_are_as_a_transform_needs_them(create_app: CreateApp, serve: Serve) -> None:
    """One choice where one was asked for, with a delta; and the pieces of tool calls with the number of their call."""
    seen: list[Any] = []

    async def own(chat):
        async for each in chat.call("one", chat.messages):
            seen.extend(each["choices"])
            yield each

    def calling(name: str) -> bytes:
        return chunk(index=4, tool_calls=[{"index": 0, "id": "", "function": {"name": name, "arguments": "{}"}}])

    pieces = [chunk("a", index=2), chunk("b", index=3), calling("f"), calling("g")]
    legacy = b'data: {"choices":[{"index":9,"text":"","finish_reason":"tool_calls"}]}\n\n'
    _, read_stream, _ = await stream_of(create_app, serve, own, [*pieces, legacy])
    assert [choice["index"] for choice in seen] == [0] * 5
    assert all("text" not in choice for choice in seen)
    assert [call["index"] for choice in seen for call in choice["delta"].get("tool_calls", ())] == [0, 1]
    assert (read_stream.text, read_stream.outcome, read_stream.finish_reason) == ("ab", "completed", "tool_calls")
    roles = [each for each in read_stream.chunks if each["choices"] and each["choices"][0]["delta"].get("role")]
    assert len(roles) == 1


class Reason(Enum):
    LENGTH = "length"


async def test_a_reason_may_be_of_an_enum_and_nothing_else_but_text(create_app: CreateApp, serve: Serve) -> None:
    async def own(chat):
        yield "so far"
        yield end(Reason.LENGTH)  # type: ignore[arg-type]

    _, seen, _ = await stream_of(create_app, serve, own)
    assert (seen.outcome, seen.finish_reason) == ("completed", "length")
    with pytest.raises(TypeError, match="int"):
        end(5)  # type: ignore[arg-type]
    with pytest.raises(UpstreamTruncated):
        end("null")


async def test_a_model_that_says_that_it_broke_has_failed(create_app: CreateApp, serve: Serve) -> None:
    async def own(chat):
        yield "so far"
        yield end("error")

    _, seen, _ = await stream_of(create_app, serve, own)
    assert (seen.text, seen.outcome, seen.error["code"]) == ("so far", "failed", "model_failed")


async def test_reasoning_that_was_cut_in_an_emoji_can_be_stored(create_app: CreateApp, serve: Serve) -> None:
    ends: list[StreamEnd] = []
    app, ai = create_app(ScriptedUpstream([b'data: {"choices":[{"delta":{"reasoning":"\\ud83d"}}]}\n\n', finish()]))
    ai.on_end(ends.append)
    client = await serve(app)
    await client.post("/v1/chat/completions", json={**BODY, "model": "any"})
    assert ends[0].reasoning == "\ufffd"


@pytest.mark.parametrize("how", ["fails", "is stopped"])
async def test_what_a_stream_has_cost_is_known_when_it(create_app: CreateApp, serve: Serve, how: str) -> None:
    ends: list[StreamEnd] = []
    app, ai = create_app(ScriptedUpstream([chunk("x"), finish(usage={"prompt_tokens": 4, "completion_tokens": 1})]))
    ai.on_end(ends.append)

    @ai.model("own")
    async def own(chat):
        await chat.call("one", chat.messages)
        yield "so far"
        if how == "fails":
            raise RuntimeError
        raise StreamStopped("enough")

    client = await serve(app)
    await client.post("/v1/chat/completions", json=BODY)
    assert ends[0].outcome == ("failed" if how == "fails" else "stopped")
    assert ends[0].usage == {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5}
