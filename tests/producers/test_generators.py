"""The end of an app's generators: whatever ends their stream, what they iterate over is closed at once."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from openai import AsyncOpenAI
from quart import current_app

from quart_openai_sse import Event, StreamEnd
from quart_openai_sse.errors import StreamStopped
from quart_openai_sse.producers import app_model
from quart_openai_sse.simulator import Simulator
from quart_openai_sse.testing import ScriptedUpstream, read
from tests.conftest import QUESTION, CreateApp, Serve

BODY = {"model": "own", "messages": QUESTION, "stream": True}
EVENTS = {"Accept": "text/event-stream"}

speeds = pytest.mark.parametrize("fast", [False, True], ids=["slow upstream", "fast upstream"])


class Library:
    """The stream of another SDK, as openai's is made: an object in a reference cycle, with a generator that closes it.

    After ten pieces it waits forever. If it is *fast*, it has them all before they are asked for. With *tasks* it waits
    for each piece in a task of its own, as autogen does.
    """

    def __init__(self, *, fast: bool, tasks: bool = False) -> None:
        self.closed = False
        self._fast = fast
        self._tasks = tasks
        self._items = self._read()

    async def _read(self) -> AsyncIterator[str]:
        try:
            for number in range(10):
                if not self._fast:
                    await asyncio.sleep(0)
                yield f"{number} "
            await asyncio.Event().wait()
        finally:
            self.closed = True

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            step = anext(self._items)
            yield await (asyncio.ensure_future(step) if self._tasks else step)


def serve_model(create_app: CreateApp, library: Library, **options: Any) -> Any:
    """An app whose model passes on what *library* says, as most examples of SDKs do it."""
    app, ai = create_app(ScriptedUpstream(), **options)

    @ai.model("own")
    async def own(chat: Any) -> Any:
        async for piece in library:
            yield piece

    return app, ai


def text_of(item: Any) -> str:
    return "" if isinstance(item, Event) else item["choices"][0]["delta"].get("content") or ""


async def raises(items: Any, chat: Any) -> Any:
    async for item in items:
        if text_of(item) == "2 ":
            raise StreamStopped("policy")
        yield item


async def returns(items: Any, chat: Any) -> Any:
    async for item in items:
        if text_of(item) == "2 ":
            yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]}
            return
        yield item


async def breaks(items: Any, chat: Any) -> Any:
    async for item in items:
        yield item
        if text_of(item) == "1 ":
            raise ValueError("a mistake of the app")


async def passes(items: Any, chat: Any) -> Any:
    async for item in items:
        yield item


# Closed at once -----------------------------------------------------------------------------------------------------


@speeds
@pytest.mark.parametrize(
    ("transform", "options", "outcome"),
    [
        (raises, {}, "stopped policy"),
        (returns, {}, "completed "),
        (breaks, {}, "failed model_failed"),
        (None, {"tokens_per_principal": 8}, "failed tokens_spent"),
        (None, {"max_entries": 3}, "failed stream_too_long"),
        (None, {"max_bytes": 1000}, "failed stream_too_long"),
        (passes, {"max_entries": 3}, "failed stream_too_long"),
    ],
    ids=["raises", "returns", "breaks", "tokens", "entries", "bytes", "entries, behind a transform"],
)
async def test_the_stream_of_a_library_is_closed_before_the_readers_see_the_end(
    create_app: CreateApp, serve: Serve, transform: Any, options: dict[str, Any], outcome: str, fast: bool
) -> None:
    library = Library(fast=fast)
    app, ai = serve_model(create_app, library, **options)
    if transform is not None:
        ai.transform(transform)
    ends: list[tuple[str, bool]] = []
    ai.on_end(lambda end: ends.append((f"{end.outcome} {end.reason}", library.closed)))
    client = await serve(app)
    response = await client.post("/v1/streams", json=BODY, headers=EVENTS)
    assert "0 " in (await read(response.content)).text
    assert ends == [(outcome, True)]


async def test_a_library_that_waits_in_tasks_is_closed_too(create_app: CreateApp, serve: Serve) -> None:
    library = Library(fast=False, tasks=True)
    app, ai = serve_model(create_app, library)
    ai.transform(raises)
    ends: list[tuple[str, bool]] = []
    ai.on_end(lambda end: ends.append((end.reason, library.closed)))
    client = await serve(app)
    await client.post("/v1/streams", json=BODY, headers=EVENTS)
    assert ends == [("policy", True)]


@speeds
@pytest.mark.parametrize("how", ["stopped", "client_left"])
@pytest.mark.parametrize("at", ["a wait of the library", "a yield"])
async def test_it_is_closed_when_the_stream_is_stopped_or_its_reader_leaves(
    create_app: CreateApp, serve: Serve, how: str, at: str, fast: bool
) -> None:
    library, waiting = Library(fast=fast), asyncio.Event()
    ended: asyncio.Future[StreamEnd] = asyncio.get_running_loop().create_future()
    closed: list[bool] = []
    app, ai = serve_model(create_app, library, linger=0 if how == "client_left" else 30)

    @ai.transform
    async def moderate(items: Any, chat: Any) -> Any:
        async for item in items:
            if at == "a yield" and text_of(item) == "2 ":
                waiting.set()
                await asyncio.Event().wait()
            yield item
            if text_of(item) == "9 ":
                waiting.set()

    @ai.on_end
    async def store(end: StreamEnd) -> None:
        closed.append(library.closed)
        ended.set_result(end)

    client = await serve(app)
    async with client.stream("POST", "/v1/streams", json=BODY, headers=EVENTS) as response:
        await waiting.wait()
        if how == "stopped":
            await client.delete(f"/v1/streams/{response.headers['x-stream-id']}")
    end = await ended
    assert (end.outcome, closed) == ("stopped", [True])
    assert (end.reason == "client_left") == (how == "client_left")


async def reads_ahead(items: Any, chat: Any) -> Any:
    """Tells the reader that the model is still at work, whenever it has been silent for a moment."""
    task = None
    while True:
        task = task or asyncio.ensure_future(anext(items))
        if not (await asyncio.wait([task], timeout=0.01))[0]:
            yield Event("working")
            continue
        try:
            item = task.result()
        except StopAsyncIteration:
            return
        task = None
        yield item


async def pumps(items: Any, chat: Any) -> Any:
    """Reads in a task that runs beside it."""

    async def pump() -> None:
        async for item in items:
            await queue.put(item)

    queue: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.ensure_future(pump())
    while not task.done() or not queue.empty():
        yield await queue.get()


@pytest.mark.parametrize("transform", [reads_ahead, pumps])
async def test_a_transform_that_reads_in_another_task_leaves_no_model_behind(
    create_app: CreateApp, serve: Serve, transform: Any
) -> None:
    library = Library(fast=False)
    app, ai = serve_model(create_app, library)
    ai.transform(transform)
    ends: list[tuple[str, bool]] = []
    ai.on_end(lambda end: ends.append((end.outcome, library.closed)))
    client = await serve(app)
    async with client.stream("POST", "/v1/streams", json=BODY, headers=EVENTS) as response:
        pieces = response.aiter_text()
        text = ""
        while '"9 "' not in text:
            text += await anext(pieces)
        await client.delete(f"/v1/streams/{response.headers['x-stream-id']}")
        async for piece in pieces:
            text += piece
    assert "event: stopped" in text
    assert ends == [("stopped", True)]


@pytest.mark.parametrize("model", ["sim-length-4000-rate-20", "sim-length-100000-rate-0"], ids=["slow", "fast"])
async def test_openais_sdk_closes_its_request(
    create_app: CreateApp, serve: Serve, simulator: Simulator, model: str
) -> None:
    app, ai = create_app(ScriptedUpstream())
    async with AsyncOpenAI(base_url=simulator.base_url, api_key="k", max_retries=0) as sdk:

        @ai.model("own")
        async def own(chat: Any) -> Any:
            async for chunk in await sdk.chat.completions.create(model=model, messages=chat.messages, stream=True):
                yield chunk

        @ai.transform
        async def guard(items: Any, chat: Any) -> Any:
            async for item in items:
                yield item
                if text_of(item):
                    raise StreamStopped("policy")

        client = await serve(app)
        response = await client.post("/v1/chat/completions", json=BODY)
        assert (await read(response.content)).error["code"] == "stopped"
        async with asyncio.timeout(10):
            counters = simulator.counters
            await counters.until(lambda: counters.totals["closed_by_peer"])


async def test_what_a_transform_iterates_over_is_closed_too(create_app: CreateApp, serve: Serve) -> None:
    theirs, ours = Library(fast=False), Library(fast=False)
    app, ai = serve_model(create_app, theirs, max_entries=3)

    @ai.transform
    async def translate(items: Any, chat: Any) -> Any:
        await anext(items)
        async for piece in ours:
            yield piece

    client = await serve(app)
    response = await client.post("/v1/streams", json=BODY, headers=EVENTS)
    assert (await read(response.content)).error["code"] == "stream_too_long"
    assert (theirs.closed, ours.closed) == (True, True)


async def test_an_item_that_is_no_chunk_closes_it_too(create_app: CreateApp, serve: Serve) -> None:
    library = Library(fast=True)
    app, ai = create_app(ScriptedUpstream())

    @ai.model("own")
    async def own(chat: Any) -> Any:
        async for _ in library:
            yield 5

    client = await serve(app)
    assert (await client.post("/v1/chat/completions", json=BODY)).json()["error"]["code"] == "model_failed"
    assert library.closed


# What still runs ----------------------------------------------------------------------------------------------------


async def test_a_model_that_is_stopped_at_an_event_does_not_get_past_its_next_wait(
    create_app: CreateApp, serve: Serve
) -> None:
    app, ai = create_app(ScriptedUpstream())
    seen: list[str] = []

    @ai.model("own")
    async def own(chat: Any) -> Any:
        try:
            yield Event("tool", {"name": "delete_account"})
            seen.append("runs on")
            await asyncio.sleep(0)
            seen.append("deleted")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    @ai.transform
    async def guard(items: Any, chat: Any) -> Any:
        async for item in items:
            assert seen == []  # nothing of the model runs ahead
            raise StreamStopped("not this tool")
            yield item

    client = await serve(app)
    await client.post("/v1/chat/completions", json=BODY)
    assert seen == ["runs on", "cancelled"]


async def test_a_model_that_never_waits_is_closed_at_its_yield(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream())
    closed = asyncio.Event()

    @ai.model("own")
    async def own(chat: Any) -> Any:
        try:
            while True:
                yield "on and on "
        except GeneratorExit:
            closed.set()

    ai.transform(returns_at_once)
    client = await serve(app)
    seen = await read((await client.post("/v1/chat/completions", json=BODY)).content)
    assert (seen.text, seen.outcome, closed.is_set()) == ("on and on ", "completed", True)


async def returns_at_once(items: Any, chat: Any) -> Any:
    yield await anext(items)
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}


@pytest.mark.parametrize("kind", [ValueError, pytest.fail.Exception])
async def test_an_exception_while_it_is_closed_is_logged_and_does_not_change_the_end(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    app, ai = create_app(ScriptedUpstream())

    @ai.model("own")
    async def own(chat: Any) -> Any:
        try:
            yield "enough"
            await asyncio.Event().wait()
        finally:
            raise kind("cannot clean up")

    ai.transform(returns_at_once)
    client = await serve(app)
    assert (await read((await client.post("/v1/chat/completions", json=BODY)).content)).outcome == "completed"
    assert "raised while it was closed" in caplog.text
    assert "cannot clean up" in caplog.text


async def test_the_item_before_an_exception_comes_first(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream())

    @ai.model("own")
    async def own(chat: Any) -> Any:
        piece: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "one "}}]}
        yield piece
        piece["choices"][0]["delta"]["content"] = "two"  # the same object again
        yield piece
        raise StreamStopped("enough")

    ai.transform(passes)
    client = await serve(app)
    seen = await read((await client.post("/v1/chat/completions", json=BODY)).content)
    assert (seen.text, seen.error["code"]) == ("one two", "stopped")


@pytest.mark.parametrize("ending", ["a transform", "a deadline"])
@pytest.mark.parametrize("how", ["yields on", "waits on"])
async def test_a_model_that_swallows_its_cancellation_holds_nothing_up(
    create_app: CreateApp,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
    ending: str,
) -> None:
    monkeypatch.setattr(app_model, "CLEAN_UP", 0.05)
    app, ai = create_app(ScriptedUpstream(), gap_timeouts={"own": 0.05 if ending == "a deadline" else 60})
    released, over = asyncio.Event(), asyncio.Event()

    @ai.model("own")
    async def own(chat: Any) -> Any:
        try:
            yield "so far"
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            while not released.is_set():
                if how == "yields on":
                    yield "late"
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    released.set() if how == "yields on" else None
        finally:
            over.set()

    if ending == "a transform":
        ai.transform(returns_at_once)
    client = await serve(app)
    seen = await read((await client.post("/v1/chat/completions", json=BODY)).content)
    left = not over.is_set()
    released.set()  # before any assertion fails
    await over.wait()
    assert seen.text == "so far"
    assert (seen.error or {}).get("code") == (None if ending == "a transform" else "model_gap_timeout")
    assert left == (how == "waits on")
    assert ("does not end" in caplog.text) == (how == "waits on")


# One task -----------------------------------------------------------------------------------------------------------

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


@pytest.mark.parametrize("stopped", [False, True])
async def test_context_variables_stay_across_yields_and_their_tokens_reset(
    create_app: CreateApp, serve: Serve, stopped: bool
) -> None:
    app, ai = create_app(ScriptedUpstream())
    seen: list[Any] = []

    @ai.model("own")
    async def own(chat: Any) -> Any:
        task = asyncio.current_task()
        token = VARIABLE.set("set")
        try:
            for _ in range(3):
                yield f"{VARIABLE.get()} "
                await asyncio.sleep(0)
                seen.append(asyncio.current_task() is task)
        finally:
            VARIABLE.reset(token)
            seen.append((asyncio.current_task() is task, VARIABLE.get(), current_app.name))

    if stopped:
        ai.transform(returns_at_once)
    client = await serve(app)
    stream = await read((await client.post("/v1/chat/completions", json=BODY)).content)
    assert (stream.text, stream.outcome) == ("set " if stopped else "set set set ", "completed")
    assert seen == [*([] if stopped else [True] * 3), (True, "unset", app.name)]


@pytest.mark.parametrize("stopped", [False, True])
async def test_timeouts_task_groups_and_cancel_scopes_may_be_open_across_a_yield(
    create_app: CreateApp, serve: Serve, stopped: bool
) -> None:
    app, ai = create_app(ScriptedUpstream())
    forever, closed = asyncio.Event(), []

    @ai.model("own")
    async def own(chat: Any) -> Any:
        async def background() -> None:
            try:
                await forever.wait()
            finally:
                closed.append("task")

        async with anyio.create_task_group() as group:
            group.start_soon(background)
            with anyio.CancelScope():
                try:
                    async with asyncio.timeout(0.01):
                        yield "one "
                        await forever.wait()
                except TimeoutError:
                    yield "late "
            with anyio.move_on_after(0.01):
                yield "two"
                await forever.wait()
            group.cancel_scope.cancel()
        closed.append("group")

    if stopped:
        ai.transform(returns_at_once)
    client = await serve(app)
    stream = await read((await client.post("/v1/chat/completions", json=BODY)).content)
    assert (stream.text, stream.outcome) == ("one " if stopped else "one late two", "completed")
    assert closed == (["task"] if stopped else ["task", "group"])


# Other iterators ----------------------------------------------------------------------------------------------------


class Bare:
    """An async iterator without `aclose`, over *items*."""

    def __init__(self, items: Any) -> None:
        self._items = aiter(items)

    def __aiter__(self) -> Bare:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._items)


def bare(function: Any) -> Any:
    """A decorator of the app's own, which returns an iterator without `aclose`."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        return Bare(function(*args))

    return wrapped


@pytest.mark.parametrize("stopped", [False, True])
async def test_iterators_without_aclose_are_models_and_transforms(
    create_app: CreateApp, serve: Serve, stopped: bool
) -> None:
    library = Library(fast=False)
    app, ai = create_app(ScriptedUpstream())

    @ai.model("own")
    @bare
    async def own(chat: Any) -> Any:
        if stopped:
            async for piece in library:
                yield piece
        yield "whole"

    ai.transform(bare(passes))
    if stopped:
        ai.transform(bare(returns_at_once))
    client = await serve(app)
    response = await client.post("/v1/chat/completions", json={**BODY, "stream": False})
    message = json.loads(response.content)["choices"][0]
    assert (message["message"]["content"], message["finish_reason"]) == (
        ("0 ", "length") if stopped else ("whole", "stop")
    )
    assert library.closed == stopped
