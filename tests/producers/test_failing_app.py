"""What callers and the log are told of an exception in the app's own model: real SDKs on real sockets."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from quart_openai_sse import StreamEnd
from quart_openai_sse.errors import ModelFailed, UpstreamError
from quart_openai_sse.testing import ScriptedUpstream, chunk, read, refused, serve_app
from tests.conftest import QUESTION, CreateApp, Serve
from tests.raw import CLOSING_HEAD, Hangup, Peer, raw_upstream

BODY = {"model": "agent", "messages": QUESTION, "stream": True}
KEY = "sk-the-providers-key"
RATE = (429, b"Retry-After: 7\r\n", b'{"error": {"message": "Slow down.", "type": "tokens"}}')
REFUSALS = {
    "429": (RATE, (429, "upstream_refused", "7")),
    "500": ((500, b"", b'{"error": {"message": "The GPU broke."}}'), (502, "upstream_refused", None)),
    "400": ((400, b"", b'{"error": {"message": "Too long.", "code": "too_long"}}'), (400, "too_long", None)),
    "401": ((401, b"", b'{"error": {"message": "Bad key %s."}}' % KEY.encode()), (502, "upstream_credentials", None)),
    "404": ((404, b"", b'{"error": {"message": "No such model."}}'), (502, "upstream_error", None)),
}


def refusing(status: int, headers: bytes, body: bytes) -> Any:
    """An upstream that refuses every request."""

    async def answer(peer: Peer) -> None:
        head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % (status, len(body))
        await peer.send(head + headers + b"\r\n" + body)

    return raw_upstream(answer)


def sdk(base_url: str, **options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=base_url, api_key=KEY, **options)


async def words(client: AsyncOpenAI) -> AsyncIterator[str]:
    """What a provider answers to OpenAI's SDK."""
    async with client:
        question: Any = QUESTION
        async for each in await client.chat.completions.create(model="far", messages=question, stream=True):
            if each.choices and each.choices[0].delta.content:
                yield each.choices[0].delta.content


# What callers are told ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", REFUSALS)
async def test_a_refusal_of_a_models_library_has_its_status_and_no_sdk_asks_again(
    create_app: CreateApp, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    refusal, (status, code, retry_after) = REFUSALS[way]
    async with refusing(*refusal) as provider:
        app, ai = create_app(ScriptedUpstream())
        asked: list[str] = []

        @ai.model("agent")
        async def agent(chat):
            asked.append(chat.body["model"])
            async for word in words(sdk(provider.base_url, max_retries=0)):
                yield word

        async with serve_app(app) as address, AsyncOpenAI(base_url=f"http://{address}/v1", api_key="token-ann") as own:
            with pytest.raises(openai.APIStatusError) as raised:
                await own.chat.completions.create(model="agent", messages=QUESTION)
    error = raised.value
    assert (error.status_code, error.code) == (status, code)
    assert error.response.headers.get("retry-after") == retry_after
    assert error.response.headers["x-should-retry"] == "false"
    assert (len(asked), len(provider.requests)) == (1, 1)
    assert KEY not in error.response.text + caplog.text


async def test_after_some_output_it_is_the_end_of_the_stream(create_app: CreateApp, serve: Serve) -> None:
    ends: list[StreamEnd] = []
    async with refusing(*RATE) as provider:
        app, ai = create_app(ScriptedUpstream())
        ai.on_end(ends.append)

        @ai.model("agent")
        async def agent(chat):
            yield "So far"
            async for word in words(sdk(provider.base_url, max_retries=0)):
                yield word

        seen = await read((await (await serve(app)).post("/v1/chat/completions", json=BODY)).content)
    assert (seen.text, seen.outcome, seen.error["code"]) == ("So far", "failed", "upstream_refused")
    assert (seen.error["type"], seen.error["message"]) == ("tokens", "Slow down.")
    assert [(end.reason, end.record.status, end.error and end.error.retry_after) for end in ends] == [
        ("upstream_refused", 429, 7)
    ]


async def test_the_connection_of_a_models_library_is_a_502(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream())

    @ai.model("agent")
    async def agent(chat):
        async with httpx.AsyncClient() as client:
            yield (await client.get("http://127.0.0.1:9/")).text

    response = await (await serve(app)).post("/v1/chat/completions", json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_unreachable")
    assert response.headers["x-should-retry"] == "false"


async def test_the_timeout_of_a_models_library_is_a_504(create_app: CreateApp, serve: Serve) -> None:
    async def silent(peer: Peer) -> None:
        await peer.gone()
        raise Hangup

    async with raw_upstream(silent) as provider:
        app, ai = create_app(ScriptedUpstream())

        @ai.model("agent")
        async def agent(chat):
            async for word in words(sdk(provider.base_url, max_retries=0, timeout=0.05)):
                yield word

        response = await (await serve(app)).post("/v1/chat/completions", json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "upstream_timeout")
    assert response.headers["x-should-retry"] == "false"


async def test_an_answer_that_breaks_in_a_models_library_was_cut(create_app: CreateApp, serve: Serve) -> None:
    async def broken(peer: Peer) -> None:
        await peer.send(CLOSING_HEAD.replace(b"Connection: close", b"Content-Length: 999") + chunk("Half of"))
        raise Hangup

    async with raw_upstream(broken) as provider:
        app, ai = create_app(ScriptedUpstream())

        @ai.model("agent")
        async def agent(chat):
            async for word in words(sdk(provider.base_url, max_retries=0)):
                yield word

        seen = await read((await (await serve(app)).post("/v1/chat/completions", json=BODY)).content)
    assert (seen.text, seen.outcome, seen.error["code"]) == ("Half of", "failed", "upstream_truncated")


class AgentError(Exception):
    """What an agent library makes of each exception."""


@pytest.mark.parametrize("how", ["from", "while", "from None"])
async def test_an_error_of_ours_that_a_library_wraps_is_told(create_app: CreateApp, serve: Serve, how: str) -> None:
    app, ai = create_app(ScriptedUpstream([refused(429, retry_after=7)]))

    @ai.model("agent")
    async def agent(chat):
        try:
            yield str(await chat.call("far", QUESTION))
        except UpstreamError as error:
            if how == "while":
                raise AgentError("step 1")  # noqa: B904
            raise AgentError("step 1") from (error if how == "from" else None)

    response = await (await serve(app)).post("/v1/chat/completions", json=BODY)
    error = response.json()["error"]
    if how == "from None":  # hidden on purpose
        assert (response.status_code, error["code"]) == (500, "model_failed")
    else:
        assert (response.status_code, error["message"]) == (429, "The script refused.")
        assert response.headers["retry-after"] == "7"
        assert "x-should-retry" not in response.headers  # as it was raised


async def test_a_transforms_library_is_told_alike(create_app: CreateApp, serve: Serve) -> None:
    async with refusing(*RATE) as provider:
        app, ai = create_app(ScriptedUpstream("Hello."))

        @ai.transform
        async def moderate(chunks, chat):
            async for each in chunks:
                async for _ in words(sdk(provider.base_url, max_retries=0)):
                    pass
                yield each

        response = await (await serve(app)).post("/v1/chat/completions", json={**BODY, "model": "scripted"})
    assert (response.status_code, response.headers["x-should-retry"]) == (429, "false")


# What stays the app's own failure -------------------------------------------------------------------------------------


class OrderError(Exception):
    code = 404


@pytest.mark.parametrize(
    "error", [OrderError("no order"), ModelFailed("mine"), KeyError("mine"), ValueError("429")], ids=repr
)
async def test_other_exceptions_are_the_models_failure(
    create_app: CreateApp, serve: Serve, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    app, ai = create_app(ScriptedUpstream())

    @ai.model("agent")
    async def agent(chat):
        raise error
        yield

    response = await (await serve(app)).post("/v1/chat/completions", json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "model_failed")
    assert "x-should-retry" not in response.headers
    [line] = [each for each in caplog.records if each.exc_info]
    assert line.levelno == logging.ERROR


async def test_an_invalid_item_is_the_models_failure_whatever_was_raised_before(
    create_app: CreateApp, serve: Serve
) -> None:
    async with refusing(*RATE) as provider:
        app, ai = create_app(ScriptedUpstream())

        @ai.model("agent")
        async def agent(chat):
            try:
                async for word in words(sdk(provider.base_url, max_retries=0)):
                    yield word
            except openai.APIError as error:
                yield {"error_of_mine": error}

        response = await (await serve(app)).post("/v1/chat/completions", json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "model_failed")


# What the log is told -----------------------------------------------------------------------------------------------


async def test_the_log_has_the_librarys_class_the_status_and_the_place_and_no_text(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with refusing(400, b"", b'{"error": {"message": "%s: How far is the moon?"}}' % KEY.encode()) as provider:
        app, ai = create_app(ScriptedUpstream())

        @ai.model("agent")
        async def agent(chat):
            try:
                async for word in words(sdk(provider.base_url, max_retries=0)):
                    yield word
            except openai.APIError as error:
                raise AgentError(f"{KEY}: How far is the moon?") from error

        await (await serve(app)).post("/v1/chat/completions", json=BODY)
    [line] = [each for each in caplog.records if each.name == "quart_openai_sse"]
    assert (line.levelname, line.exc_info) == ("WARNING", None)
    classes = "tests.producers.test_failing_app.AgentError, openai.BadRequestError"
    assert f"model agent raised {classes} (400, upstream_refused) in {__file__}, line " in line.getMessage()
    assert line.getMessage().endswith(", in agent")
    assert KEY not in caplog.text
    assert "moon" not in caplog.text


@pytest.mark.parametrize("quoted", ["", "How far is the moon from where I am now, please?"])
async def test_the_log_says_what_callers_are_not_told_of_a_librarys_error(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture, quoted: str
) -> None:
    said = b'{"error": {"message": "org-acme1 has $0.02 left. %b"}}' % quoted.encode()
    async with refusing(402, b"", said) as provider:
        app, ai = create_app(ScriptedUpstream())

        @ai.model("agent")
        async def agent(chat):
            async for word in words(sdk(provider.base_url, max_retries=0)):
                yield word

        body = {**BODY, "messages": [{"role": "user", "content": quoted or "Hi"}]}
        response = await (await serve(app)).post("/v1/chat/completions", json=body)
    assert response.json()["error"]["code"] == "upstream_quota"
    assert ("moon" if quoted else "[account] has [amount] left.") in response.json()["error"]["message"]
    lines = [each.getMessage() for each in caplog.records if "callers are not told" in each.getMessage()]
    told = "model agent: upstream_quota; callers are not told: status 402: org-acme1 has $0.02 left."
    assert [each.partition(": ")[2] for each in lines] == ([] if quoted else [told])


async def test_the_log_says_what_callers_are_not_told_of_an_error_in_a_chunk(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    app, ai = create_app(ScriptedUpstream())

    @ai.model("agent")
    async def agent(chat):
        yield {"error": {"message": "No room at http://10.0.0.7:8000", "code": 503}}

    response = await (await serve(app)).post("/v1/chat/completions", json=BODY)
    assert response.json()["error"]["message"] == "No room at [address]"
    lines = [each.getMessage() for each in caplog.records if "callers are not told" in each.getMessage()]
    assert [each.partition("; ")[2] for each in lines] == ["callers are not told: status 503: http://10.0.0.7:8000"]


async def test_a_mistake_while_a_refusal_is_handled_has_its_traceback_in_the_log(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with refusing(*RATE) as provider:
        app, ai = create_app(ScriptedUpstream())

        @ai.model("agent")
        async def agent(chat):
            try:
                async for word in words(sdk(provider.base_url, max_retries=0)):
                    yield word
            except openai.APIError as error:
                yield error.mistaken  # type: ignore[attr-defined]

        response = await (await serve(app)).post("/v1/chat/completions", json=BODY)
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    [line] = [each for each in caplog.records if each.name == "quart_openai_sse"]
    assert line.levelname == "ERROR"
    assert line.exc_info is not None
    assert line.exc_info[0] is AttributeError
