"""The deadlines of the app's models."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from quart_openai_sse import Event
from quart_openai_sse.producers import generators, model_deadlines
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read
from quart_openai_sse.upstreams import deadlines
from tests.conftest import Clock, CreateApp, Serve
from tests.producers.relays import BODY, read_all, relay_of, start

TINY, LONG = 0.2, 0.5


class SlowClock(Clock):
    """A clock that stands still, so that no limit is met by a slow machine."""

    async def advance(self) -> None:
        """Sets it forward, by less than the limits that a test leaves alone, and waits until limits were checked."""
        await asyncio.sleep(TINY / 4)  # everything else waits by now
        self.now += 100
        await asyncio.sleep(LONG)  # a limit of `TINY` seconds is checked every `TINY` seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SlowClock:
    clock = SlowClock()
    for module in (deadlines, model_deadlines, generators):
        monkeypatch.setattr(module, "monotonic", clock)
    return clock


async def answer_of(create_app: CreateApp, serve: Serve, model: Any, upstream: Any = None, **options: Any) -> Any:
    app, ai = create_app(upstream or ScriptedUpstream(), **options)
    ai.model("own")(model)
    client = await serve(app)
    return await client.post("/v1/chat/completions", json=BODY)


@pytest.mark.parametrize("options", [{"model_first_output_timeout": TINY}, {"first_output_timeouts": {"own": TINY}}])
@pytest.mark.parametrize("preamble", [False, True])
async def test_a_model_without_output_is_a_504_of_the_app(
    create_app: CreateApp, serve: Serve, options: dict[str, Any], preamble: bool
) -> None:
    async def own(chat: Any) -> Any:
        if preamble:
            yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
        await asyncio.Event().wait()
        yield "never"

    response = await answer_of(create_app, serve, own, **options)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "model_first_output_timeout")
    assert response.json()["error"]["message"] == "The app's model began no answer in time."


@pytest.mark.parametrize("options", [{"model_gap_timeout": TINY}, {"gap_timeouts": {"own": TINY}}])
@pytest.mark.parametrize("item", ["text", Event("searching")], ids=["text", "an event"])
async def test_a_model_that_goes_silent_fails(
    create_app: CreateApp, serve: Serve, options: dict[str, Any], item: Any
) -> None:
    closed = asyncio.Event()

    async def own(chat: Any) -> Any:
        yield "so far"
        yield item
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()

    response = await answer_of(create_app, serve, own, **options)
    seen = await read(response.content)
    assert (response.status_code, seen.error["code"]) == (200, "model_gap_timeout")
    assert seen.error["message"] == "The app's model went silent."
    assert closed.is_set()


async def test_an_event_is_output_and_only_the_gap_counts_after_it(
    create_app: CreateApp, serve: Serve, clock: SlowClock
) -> None:
    async def own(chat: Any) -> Any:
        yield Event("searching")
        await clock.advance()
        yield "found"

    response = await answer_of(create_app, serve, own, model_first_output_timeout=TINY)
    assert (await read(response.content)).text == "found"


async def test_a_whole_answer_that_takes_too_long_fails(create_app: CreateApp, serve: Serve, clock: SlowClock) -> None:
    async def own(chat: Any) -> Any:
        while True:
            yield "on and on "
            clock.now += 1
            await asyncio.sleep(0.001)

    response = await answer_of(create_app, serve, own, model_total_timeout=TINY)
    seen = await read(response.content)
    assert (seen.outcome, seen.error["code"]) == ("failed", "model_total_timeout")
    assert seen.error["message"] == "The app's model took too long for its whole answer."


@pytest.mark.parametrize("silent", ["model_first_output_timeout", "model_gap_timeout"])
async def test_the_clocks_of_a_model_stand_still_while_it_waits_for_its_calls(
    create_app: CreateApp, serve: Serve, silent: str, clock: SlowClock
) -> None:
    async def own(chat: Any) -> Any:
        if silent == "model_gap_timeout":
            yield "so far, "
        async with asyncio.TaskGroup() as calls:
            for model in ("one", "two"):
                calls.create_task(chat.call(model, chat.messages)._whole())
        yield "done"

    upstream = ScriptedUpstream([chunk("a"), finish()], [chunk("b"), clock.advance, finish()])
    response = await answer_of(create_app, serve, own, upstream, **{silent: TINY})
    assert (await read(response.content)).text.endswith("done")


async def test_they_run_again_after_the_calls(create_app: CreateApp, serve: Serve) -> None:
    async def own(chat: Any) -> Any:
        yield (await chat.call("one", chat.messages))["content"]
        await chat.call("two", chat.messages)
        await asyncio.Event().wait()

    response = await answer_of(create_app, serve, own, ScriptedUpstream("hi"), model_gap_timeout=TINY)
    seen = await read(response.content)
    assert (seen.text, seen.error["code"]) == ("hi", "model_gap_timeout")


async def test_a_slow_transform_is_no_gap_of_the_model(create_app: CreateApp, serve: Serve, clock: SlowClock) -> None:
    app, ai = create_app(ScriptedUpstream(), model_gap_timeout=TINY)

    @ai.model("own")
    async def own(chat: Any) -> Any:
        yield "one "
        yield "two"

    @ai.transform
    async def slow(items: Any, chat: Any) -> Any:
        async for item in items:
            yield item
            await clock.advance()
        await clock.advance()

    client = await serve(app)
    seen = await read((await client.post("/v1/chat/completions", json=BODY)).content)
    assert (seen.text, seen.outcome) == ("one two", "completed")


async def test_the_upstreams_answer_through_transforms_has_the_upstreams_deadlines_alone(
    create_app: CreateApp, serve: Serve, clock: SlowClock
) -> None:
    upstream = ScriptedUpstream([chunk("one"), clock.advance, finish()])
    tiny = dict.fromkeys(("model_first_output_timeout", "model_gap_timeout", "model_total_timeout"), TINY)
    app, ai = create_app(upstream, **tiny)

    @ai.transform
    async def same(items: Any, chat: Any) -> Any:
        async for item in items:
            yield item

    client = await serve(app)
    response = await client.post("/v1/chat/completions", json={**BODY, "model": "scripted"})
    assert (await read(response.content)).outcome == "completed"


async def test_a_slow_reader_is_no_gap_of_the_model_and_is_asked_before_it_runs_on(clock: SlowClock) -> None:
    made = []

    async def own(chat: Any) -> Any:
        for number in range(5):
            made.append(number)
            yield f"{number} "

    async with relay_of(own, model_gap_timeout=TINY) as relay:
        _, reader = await start(relay)
        await clock.advance()  # the reader does not read
        assert made == [0]
        assert await read_all(reader) == ("0 1 2 3 4 ", "completed")
        await relay.readers.leave(reader)
    assert made == [0, 1, 2, 3, 4]
