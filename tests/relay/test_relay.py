"""The engine: how streams end, what hooks see, who is waited for, what is drained."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import Context, ContextVar
from typing import Any

import pytest
from quart import abort, current_app

from quart_openai_sse import Principal, StreamEnd, StreamEvent
from quart_openai_sse.config import Config
from quart_openai_sse.errors import (
    Draining,
    ErrorValue,
    KeyReused,
    ModelNotFound,
    PermissionDenied,
    ProducerLost,
    ServerShutdown,
    StreamNotFound,
    TooManyStreams,
)
from quart_openai_sse.formats import entry_text
from quart_openai_sse.logs.entries import END_ID, End
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.relay import running as live
from quart_openai_sse.relay.hooks import Hooks
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.running import StreamHandle
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read
from tests.conftest import ANN, QUESTION, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}
ME = Principal("ann")


@pytest.fixture
async def relays() -> AsyncIterator[Any]:
    """Makes relays without any Quart around them."""
    made = []

    def create(upstream: ScriptedUpstream, **options: Any) -> Relay:
        config = Config(base_url="http://127.0.0.1:9/v1", **options)
        relay = Relay(config=config, log=MemoryLog(), create_upstream=lambda: upstream, hooks=Hooks())
        made.append(relay)
        return relay

    yield create
    for relay in made:
        await relay.aclose()


async def ended(relay: Relay, handle: StreamHandle) -> Any:
    """The end of a stream, when it has come."""
    reader = await relay.read(handle)
    async for batch in reader:
        if batch.end is not None:
            await relay.readers.leave(reader)
            return batch.end
    return None


def when_ended(over: asyncio.Event) -> Any:
    """An observer that sets *over* at the end of a stream."""

    async def observer(event: StreamEvent) -> None:
        if event.kind == "ended":
            over.set()

    return observer


# Ends ---------------------------------------------------------------------------------------------------------------


async def test_a_stream_nobody_reads_is_stopped_after_its_linger(relays: Any) -> None:
    forever = asyncio.Event()
    upstream = ScriptedUpstream([chunk("hi"), forever.wait])
    relay = relays(upstream, linger=0)
    over = asyncio.Event()
    relay.hooks.observers.append(when_ended(over))
    handle = await relay.start(BODY, principal=ME)
    await over.wait()
    end = await ended(relay, handle)
    assert (end.outcome, end.reason) == ("stopped", "client_left")
    assert upstream.running == 0


async def test_a_stream_that_lingers_goes_on_for_who_comes_back(relays: Any) -> None:
    gate = asyncio.Event()
    relay = relays(ScriptedUpstream([chunk("one"), gate.wait, chunk(" two"), finish()]))
    handle = await relay.start(BODY, principal=ME)
    reader = await relay.read(handle)
    await anext(reader)
    await relay.readers.leave(reader)
    gate.set()
    assert (await ended(relay, handle)).outcome == "completed"


async def test_a_stream_is_bounded_in_time_whatever_produces_it(relays: Any) -> None:
    forever = asyncio.Event()
    upstream = ScriptedUpstream([chunk("hi"), forever.wait])
    relay = relays(upstream, max_duration=0.01)
    end = await ended(relay, await relay.start(BODY, principal=ME))
    assert (end.outcome, end.error.code) == ("failed", "stream_too_long")
    assert upstream.cancelled == 1


async def test_a_producer_that_does_not_stop_is_left_behind(
    relays: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live, "CLEAN_UP", 0.01)
    released = asyncio.Event()

    async def deaf() -> None:
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()

    upstream = ScriptedUpstream([chunk("hi"), deaf])
    relay = relays(upstream)
    handle = await relay.start(BODY, principal=ME)
    reader = await relay.read(handle)
    await anext(reader)
    await relay.stop(handle, "enough")
    batch = await anext(reader)
    running, logged = upstream.running, caplog.text
    await relay.readers.leave(reader)
    released.set()  # before any assertion fails: the event loop would wait for the producer
    await upstream.closed.wait()
    assert (batch.end.outcome, batch.end.reason) == ("stopped", "enough")
    assert running == 1
    assert "does not end" in logged


def scripted(*steps: Any, cancels_at_once: bool) -> ScriptedUpstream:
    """An upstream that says of itself that it is over at once when it is cancelled, or does not."""
    upstream = ScriptedUpstream([*steps])
    upstream.cancels_at_once = cancels_at_once  # type: ignore[attr-defined]
    return upstream


either_way = pytest.mark.parametrize("cancels_at_once", [True, False], ids=["at once", "in a task of its own"])


@either_way
async def test_a_producer_that_cancels_itself_has_failed(relays: Any, cancels_at_once: bool) -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    relay = relays(scripted(chunk("hi"), cancelled, cancels_at_once=cancels_at_once))
    end = await ended(relay, await relay.start(BODY, principal=ME))
    assert (end.outcome, end.error.status, end.error.message) == ("failed", 500, "The producer was cancelled.")


@either_way
async def test_who_swallows_an_interruption_has_not_completed_anything(relays: Any, cancels_at_once: bool) -> None:
    forever = asyncio.Event()

    class Swallowing(ScriptedUpstream):
        async def run(self, *args: Any, **options: Any) -> None:
            with suppress(asyncio.CancelledError):
                await super().run(*args, **options)

    upstream = Swallowing([chunk("hi"), forever.wait])
    upstream.cancels_at_once = cancels_at_once  # type: ignore[attr-defined]
    relay = relays(upstream)
    handle = await relay.start(BODY, principal=ME)
    reader = await relay.read(handle)
    await anext(reader)
    await relay.stop(handle, "enough")
    end = (await anext(reader)).end
    assert (end.outcome, end.reason) == ("stopped", "enough")
    await relay.readers.leave(reader)


@either_way
async def test_what_a_producer_still_says_after_a_stop_is_not_part_of_the_stream(
    relays: Any, cancels_at_once: bool
) -> None:
    async def deaf() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    relay = relays(scripted(chunk("hi"), deaf, chunk(" again"), finish(), cancels_at_once=cancels_at_once))
    handle = await relay.start(BODY, principal=ME)
    reader = await relay.read(handle)
    said = [await anext(reader)]
    await relay.stop(handle, "enough")
    said += [batch async for batch in reader]
    assert [entry_text(entry) for batch in said for entry in batch.entries] == ["hi"]
    assert (said[-1].end.outcome, said[-1].end.reason) == ("stopped", "enough")
    await relay.readers.leave(reader)


@either_way
async def test_a_producer_that_stops_its_stream_and_fails_does_not_cancel_on_end(
    relays: Any, cancels_at_once: bool
) -> None:
    handle: Any = None
    told: list[str] = []

    async def stop() -> None:
        await relay.stop(handle, "enough")
        raise ValueError

    async def on_end(end: StreamEnd) -> None:
        for _ in range(50):  # longer than a reader needs for an end that did not wait for this
            await asyncio.sleep(0)
        told.append(end.outcome)

    gate = asyncio.Event()
    relay = relays(scripted(chunk("hi"), gate.wait, stop, cancels_at_once=cancels_at_once))
    relay.hooks.on_end.append(on_end)
    handle = await relay.start(BODY, principal=ME)
    gate.set()
    end = await ended(relay, handle)
    assert [end.outcome] == told == ["stopped"]


if sys.version_info >= (3, 12):  # the first with eager tasks

    async def test_a_stream_may_begin_at_once(relays: Any) -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        try:
            relay = relays(scripted(chunk("hi"), finish(), cancels_at_once=True))
            told: list[str] = []
            over = asyncio.Event()

            async def observer(event: StreamEvent) -> None:
                told.append(event.kind)
                if {"started", "ended"} <= set(told):
                    over.set()

            relay.hooks.observers.append(observer)
            handle = await relay.start(BODY, principal=ME)
            assert (await ended(relay, handle)).outcome == "completed"
            await over.wait()
            assert told == ["started", "first_chunk", "ended"]
            assert len(relay.streams) == 0
        finally:
            loop.set_task_factory(None)


async def test_whoever_comes_back_before_a_stream_is_seen_off_keeps_it(relays: Any) -> None:
    forever = asyncio.Event()
    upstream = scripted(chunk("hi"), forever.wait, cancels_at_once=True)
    relay = relays(upstream, linger=0, max_streams_per_principal=1000)
    readers = []
    for _ in range(40):
        readers.append(await relay.read(await relay.start(BODY, principal=ME)))
        await anext(readers[-1])
    for reader in readers:
        await relay.readers.leave(reader)
    while not relay.streams._departures._waiting:
        await asyncio.sleep(0)
    waiting = [live.handle for live, _ in relay.streams._departures._waiting]
    back = [await relay.read(handle) for handle in waiting]
    while relay.streams._departures._running:
        await asyncio.sleep(0)
    assert upstream.running == len(waiting) > 0
    for reader in back:
        await relay.readers.leave(reader)


@either_way
async def test_an_interruption_in_the_last_moment_does_not_reach_on_end(relays: Any, cancels_at_once: bool) -> None:
    """Whichever comes first: the hook runs to its end, and the stream has one."""
    for turns in range(12):
        gate = asyncio.Event()
        relay = relays(scripted(chunk("hi"), gate.wait, finish(), cancels_at_once=cancels_at_once))
        told = []

        async def on_end(end: StreamEnd, told: list[str] = told) -> None:
            for _ in range(50):  # longer than a reader needs for an end that did not wait for this
                await asyncio.sleep(0)
            told.append(end.outcome)

        relay.hooks.on_end.append(on_end)
        handle = await relay.start(BODY, principal=ME)
        reader = await relay.read(handle)
        await anext(reader)
        gate.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        await relay.stop(handle, "enough")
        end = next(batch.end for batch in [batch async for batch in reader] if batch.end)
        assert told == [end.outcome]
        assert end.outcome in ("stopped", "completed")
        await relay.readers.leave(reader)


async def test_when_many_leave_at_once_a_few_are_seen_off_in_a_turn(relays: Any) -> None:
    forever = asyncio.Event()
    upstream = scripted(chunk("hi"), forever.wait, cancels_at_once=True)
    relay = relays(upstream, max_streams_per_principal=1000)
    handles = [await relay.start(BODY, principal=ME, retain=False) for _ in range(100)]
    for handle in handles:
        await anext(handle.reader)
    for handle in handles:
        await relay.readers.leave(handle.reader)
    went = []
    while upstream.running:
        before = upstream.cancelled
        await asyncio.sleep(0)
        went.append(upstream.cancelled - before)
    assert sum(went) == 100
    assert max(went) <= 10
    assert len(went) < 40


async def test_a_stream_that_outgrows_the_log_is_failed(relays: Any) -> None:
    upstream = ScriptedUpstream([*(chunk(str(number)) for number in range(20)), finish()])
    relay = relays(upstream)
    relay.log.max_entries = 10
    handle = await relay.start(BODY, principal=ME)
    reader = await relay.read(handle)
    batches = [batch async for batch in reader]
    await relay.readers.leave(reader)
    assert sum(len(batch.entries) for batch in batches) == 10
    assert (batches[-1].end.outcome, batches[-1].end.error.code) == ("failed", "stream_too_long")


async def test_refusals_leave_nothing_behind(relays: Any) -> None:
    relay = relays(ScriptedUpstream(), models=("one",), max_streams=1)
    for _ in range(3):
        with pytest.raises(ModelNotFound):
            await relay.start(BODY, principal=ME, retain=False)
        with pytest.raises(ModelNotFound):
            await relay.start(BODY, principal=ME, idempotency_key="k")
    assert not relay.readers
    assert not relay.admission.slots.taken
    assert relay.log.size == 0


async def test_attaching_needs_no_place(relays: Any) -> None:
    gate = asyncio.Event()
    relay = relays(ScriptedUpstream([chunk("hi"), gate.wait, finish()]), max_streams=1)
    first = await relay.start(BODY, principal=ME, idempotency_key="k")
    again = await relay.start(BODY, principal=ME, idempotency_key="k")
    assert (again.id, again.attached) == (first.id, True)
    with pytest.raises(KeyReused):
        await relay.start({**BODY, "user": "other"}, principal=ME, idempotency_key="k")
    with pytest.raises(TooManyStreams):
        await relay.start(BODY, principal=ME, idempotency_key="another")
    with pytest.raises(StreamNotFound):
        await relay.log.tail(relay.handle(first.id, Principal("bob")).key)
    gate.set()
    assert (await ended(relay, first)).outcome == "completed"
    assert (await relay.start(BODY, principal=ME, idempotency_key="k")).attached


async def test_a_twin_gives_its_place_back(relays: Any) -> None:
    gate = asyncio.Event()
    relay = relays(ScriptedUpstream([chunk("hi"), gate.wait, finish()]), max_streams=5)
    for _ in range(3):
        await relay.start(BODY, principal=ME, idempotency_key="k")
    assert relay.admission.slots.taken == 1
    assert relay.memory.bodies > 0
    gate.set()


async def test_a_stream_that_another_process_has_ended_is_given_up(relays: Any) -> None:
    ends, events = [], []
    upstream = ScriptedUpstream([chunk("hi"), asyncio.Event().wait])
    relay = relays(upstream)
    relay.hooks.on_end.append(ends.append)

    async def observe(event: StreamEvent) -> None:
        events.append((event.kind, event.record.reason))

    relay.hooks.observers.append(observe)
    handle = await relay.start(BODY, principal=ME)
    reader = await relay.read(handle)
    await anext(reader)
    writer = relay.streams.get(handle.key).writer
    lost = End("failed", "producer_lost", ErrorValue.of(ProducerLost()))
    await writer.close(lost)  # as a log does that is told so by its store
    relay.streams.get(handle.key).lose()
    while relay.streams:
        await asyncio.sleep(0)
    assert (await ended(relay, handle)) == lost
    await relay.readers.leave(reader)
    while ("ended", "producer_lost") not in events:
        await asyncio.sleep(0)
    assert (ends, upstream.running) == ([], 0)


@pytest.mark.parametrize("retain", [True, False])
async def test_no_timer_keeps_the_context_of_a_request(relays: Any, retain: bool) -> None:
    class Request:
        pass

    async def start(request: Request) -> Any:
        current.set(request)
        handle = await relay.start(BODY, principal=ME, retain=retain)
        reader = handle.reader or await relay.read(handle)
        await reader.opened(60)
        async for _ in reader:
            pass
        await relay.readers.leave(reader)

    current: ContextVar[Request] = ContextVar("current")
    relay = relays(ScriptedUpstream())
    # asyncio forgets cancelled timers at once if no other is due before them.
    earlier = asyncio.get_running_loop().call_later(5, print, context=Context())
    await asyncio.create_task(start(Request()))
    request = Request()
    watched = weakref.ref(request)
    task = asyncio.create_task(start(request))
    del request
    await task
    del task
    while relay.streams:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    gc.collect()
    assert watched() is None
    earlier.cancel()


async def test_a_line_that_can_not_be_logged_keeps_nobody_from_being_told(
    relays: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise ValueError

    caplog.set_level(logging.INFO, "quart_openai_sse.stream")
    logger = logging.getLogger("quart_openai_sse.stream")
    told = asyncio.Event()
    relay = relays(ScriptedUpstream())
    relay.hooks.observers.append(when_ended(told))
    logger.addFilter(refuse)
    try:
        await relay.start(BODY, principal=ME)
        await told.wait()
    finally:
        logger.removeFilter(refuse)
    assert "could not be logged" in caplog.text


# Hooks --------------------------------------------------------------------------------------------------------------


async def test_prepare_changes_or_refuses_a_request(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream()
    app, ai = create_app(upstream)

    @ai.prepare
    async def system_prompt(body, principal):
        if principal.id == "bob":
            raise PermissionDenied("Not bob.")
        return {**body, "messages": [{"role": "system", "content": "Be brief."}, *body["messages"]]}

    @ai.prepare
    def cap(body, principal):
        body["max_tokens"] = 10
        return body

    @ai.prepare
    def look(body, principal):
        assert body["max_tokens"] == 10

    client = await serve(app)
    assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 200
    assert [message["role"] for message in upstream.requests[0]["messages"]] == ["system", "user"]
    refused = await client.post("/v1/chat/completions", json=BODY, headers={"Authorization": "Bearer token-bob"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert len(upstream.requests) == 1


async def test_a_prepare_hook_that_breaks_is_the_apps_failure(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    app, ai = create_app(ScriptedUpstream())

    @ai.prepare
    def broken(body, principal):
        raise ZeroDivisionError("secret")

    client = await serve(app)
    response = await client.post("/v1/chat/completions", json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert "ZeroDivisionError" in caplog.text


async def test_a_prepare_hook_may_abort_and_change_what_it_is_given(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream()
    app, ai = create_app(upstream)
    mine = {**BODY, "messages": list(QUESTION)}

    @ai.prepare
    def change(body, principal):
        body["messages"].insert(0, {"role": "system", "content": "x"})
        body["stream"] = False
        if body.get("user") == "nobody":
            abort(403)

    @app.post("/ask")
    async def ask():
        stream = await ai.start(mine, principal=await ai.principal())
        return await stream.response()

    client = await serve(app)
    for _ in range(2):
        assert (await read((await client.post("/ask")).content)).outcome == "completed"
    assert mine["messages"] == QUESTION
    assert [len(request["messages"]) for request in upstream.requests] == [2, 2]
    assert [request["stream"] for request in upstream.requests] == [True, True]
    assert (await client.post("/v1/chat/completions", json={**BODY, "user": "nobody"})).status_code == 403


async def test_who_waits_for_a_start_that_broke_off_may_start_anew(create_app: CreateApp, serve: Serve) -> None:
    asked, gate = asyncio.Event(), asyncio.Event()
    app, ai = create_app(ScriptedUpstream("hello"))

    @ai.prepare
    async def slow(body, principal):
        asked.set()
        await gate.wait()

    client = await serve(app)
    ask = {"url": "/v1/chat/completions", "json": BODY, "headers": {"Idempotency-Key": "k"}}
    first = asyncio.ensure_future(client.post(**ask))
    await asked.wait()
    second = asyncio.ensure_future(client.post(**ask))
    relay = app.extensions["quart_openai_sse"][ai.name].engines.current()
    while not relay.readers:
        await asyncio.sleep(0)
    first.cancel()
    refused = await second
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "start_abandoned")
    assert refused.headers["x-should-retry"] == "true"
    gate.set()
    assert (await read((await client.post(**ask)).content)).text == "hello"


async def test_a_start_that_is_being_prepared_does_not_slip_past_a_drain(create_app: CreateApp, serve: Serve) -> None:
    asked, gate = asyncio.Event(), asyncio.Event()
    upstream = ScriptedUpstream()
    app, ai = create_app(upstream)

    @ai.prepare
    async def slow(body, principal):
        asked.set()
        await gate.wait()

    client = await serve(app)
    asking = asyncio.ensure_future(client.post("/v1/chat/completions", json=BODY))
    await asked.wait()
    await ai.drain(0, app=app)
    gate.set()
    assert (await asking).status_code == 503
    assert not upstream.requests


async def test_on_end_is_awaited_before_readers_see_the_end(create_app: CreateApp, serve: Serve) -> None:
    stored, gate = [], asyncio.Event()
    app, ai = create_app(ScriptedUpstream("one two"))

    @ai.on_end
    async def store(end: StreamEnd) -> None:
        await gate.wait()
        assert current_app.name
        stored.append(end)

    client = await serve(app)
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    body = b""
    async with client.stream("GET", url) as response:
        async for data in response.aiter_raw():
            body += data
            if b"two" in body and not gate.is_set():
                assert b"completed" not in body
                gate.set()
    assert b"event: completed" in body
    [end] = stored
    assert (end.outcome, end.text, end.principal.id, end.body["messages"]) == (
        "completed",
        "one two",
        "ann",
        QUESTION,
    )


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("hello", ("completed", "", "hello")),
        ([chunk("hal")], ("failed", "upstream_truncated", "hal")),
        ([OSError("no")], ("failed", "internal_error", "")),
    ],
)
async def test_on_end_sees_every_ending_once(
    create_app: CreateApp, serve: Serve, script: Any, expected: tuple[str, str, str]
) -> None:
    ends: list[StreamEnd] = []
    app, ai = create_app(ScriptedUpstream(script))
    ai.on_end(lambda end: ends.append(end))
    client = await serve(app)
    await client.post("/v1/chat/completions", json=BODY)
    assert [(end.outcome, end.reason, end.text) for end in ends] == [expected]


class TalksOn(ScriptedUpstream):
    """An upstream whose last words arrive when its stream has been stopped."""

    async def run(self, request: Any, sink: Any, *, principal: Principal) -> None:
        try:
            await super().run(request, sink, principal=principal)
        except asyncio.CancelledError:
            sink.feed(chunk(" more"))
            raise


@pytest.mark.parametrize(
    ("upstream", "most", "outcome"),
    [(TalksOn, 10, "stopped"), (ScriptedUpstream, 2, "failed")],
    ids=["stopped, and it talks on", "too long for the log"],
)
async def test_on_end_is_told_what_the_readers_saw_and_nothing_more(
    relays: Any, upstream: type[ScriptedUpstream], most: int, outcome: str
) -> None:
    told = []
    relay = relays(upstream([chunk("Tell"), chunk(" me"), chunk(" all"), asyncio.Event().wait]))
    relay.log.max_entries = most
    relay.hooks.on_end.append(told.append)
    handle = await relay.start(BODY, principal=ME)
    reader = await relay.read(handle)
    seen = ""
    async for batch in reader:
        seen += "".join(entry_text(entry) for entry in batch.entries)
        if seen.endswith("all"):
            await relay.stop(handle, "enough")
    await relay.readers.leave(reader)
    assert (seen, outcome) == (told[0].text, told[0].outcome)
    assert seen


async def test_a_plain_function_runs_in_a_thread_with_the_app_context(create_app: CreateApp, serve: Serve) -> None:
    threads = []
    app, ai = create_app(ScriptedUpstream())

    @ai.on_end
    def store(end: StreamEnd) -> None:
        threads.append((threading.current_thread(), current_app.name))

    client = await serve(app)
    await client.post("/v1/chat/completions", json=BODY)
    [(thread, name)] = threads
    assert thread is not threading.main_thread()
    assert name == app.name


async def test_on_end_may_be_anything_that_can_be_called(create_app: CreateApp, serve: Serve) -> None:
    called = []

    class Store:
        async def __call__(self, end: StreamEnd) -> None:
            called.append("object")

    async def later(end: StreamEnd) -> None:
        called.append("lambda")

    app, ai = create_app(ScriptedUpstream())
    ai.on_end(Store())
    ai.on_end(lambda end: later(end))
    client = await serve(app)
    await client.post("/v1/chat/completions", json=BODY)
    assert sorted(called) == ["lambda", "object"]


async def test_a_failing_or_slow_on_end_changes_nothing(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    forever = asyncio.Event()
    app, ai = create_app(ScriptedUpstream("hello"), on_end_timeout=0.01)

    @ai.on_end
    async def broken(end: StreamEnd) -> None:
        raise ZeroDivisionError

    @ai.on_end
    async def slow(end: StreamEnd) -> None:
        await forever.wait()

    client = await serve(app)
    seen = await read((await client.post("/v1/chat/completions", json=BODY)).content)
    assert (seen.text, seen.outcome) == ("hello", "completed")
    assert "on_end hook 'broken' raised" in caplog.text
    assert "on_end hook 'slow' has been running for more than 0.01 s; still running: 1" in caplog.text
    forever.set()


async def test_observers_see_a_streams_life_and_cannot_disturb_it(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[StreamEvent] = []
    app, ai = create_app(ScriptedUpstream("one two"))

    @ai.observe
    def broken(event: StreamEvent) -> None:
        raise ZeroDivisionError

    @ai.observe
    async def broken_later(event: StreamEvent) -> None:
        raise ZeroDivisionError

    over = asyncio.Event()
    ai.observe(events.append)
    ai.observe(when_ended(over))
    client = await serve(app)
    response = await client.post("/v1/chat/completions", json=BODY)
    assert (await read(response.content)).text == "one two"
    await over.wait()
    await app.extensions["quart_openai_sse"][ai.name].engines.current()._background.wait(5)
    assert [event.kind for event in events] == ["started", "first_chunk", "ended"]
    assert [event.record.outcome for event in events] == ["", "", "completed"]
    record = events[-1].record
    assert record.id == response.headers["x-stream-id"]
    assert (record.chunks, record.attempts, record.readers, record.resumes) == (4, 1, 1, 0)
    assert record.bytes > 100
    assert 0 <= record.time_to_first_output <= record.duration
    assert (record.principal, record.model, record.upstream) == ("token:ann", "scripted", "scripted")
    assert [caplog.text.count(f"{record.id}: observe hook {name!r} raised") for name in ("broken", "broken_later")] == [
        3,
        3,
    ]


async def test_one_line_is_logged_per_stream_with_its_fields(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quart_openai_sse.stream")
    app, ai = create_app(ScriptedUpstream("one two"))

    @ai.observe
    def cannot_be_copied(event: StreamEvent) -> None:
        event.record.metadata.setdefault("lock", threading.Lock())

    client = await serve(app)
    await client.post("/v1/chat/completions", json=BODY, headers={**ANN, "X-Trace-ID": "trace-1"})
    [line] = [record for record in caplog.records if record.name == "quart_openai_sse.stream"]
    assert line.levelno == logging.INFO
    assert line.getMessage().startswith(f"stream {line.stream_id} completed model=scripted chunks=4 ")
    assert (line.stream_trace_id, line.stream_principal, line.stream_status) == ("trace-1", "token:ann", 200)
    assert "moon" not in repr(vars(line))  # neither prompt nor completion


async def test_an_event_over_its_limit_fails_the_stream_and_the_error_names_the_option(
    create_app: CreateApp, serve: Serve
) -> None:
    app, _ = create_app(ScriptedUpstream([chunk("hi"), b"data: " + b"x" * 2000]), max_event=1000)
    client = await serve(app)
    stream = await read((await client.post("/v1/chat/completions", json=BODY)).content)
    assert (stream.text, stream.error["code"]) == ("hi", "event_too_large")
    assert stream.error["message"] == "The upstream sent an event of more than 1000 bytes (max_event)."


async def test_a_first_event_over_its_limit_is_a_502_that_sdks_do_not_retry(
    create_app: CreateApp, serve: Serve
) -> None:
    app, _ = create_app(ScriptedUpstream([b"data: " + b"x" * 2000]), max_event=1000)
    client = await serve(app)
    response = await client.post("/v1/chat/completions", json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "event_too_large")
    assert response.headers["x-should-retry"] == "false"


async def test_one_read_of_the_upstream_is_one_write_to_the_client(create_app: CreateApp, serve: Serve) -> None:
    gate, first_written = asyncio.Event(), asyncio.Event()
    three = chunk("one") + chunk(" two") + chunk(" three")
    app, _ = create_app(ScriptedUpstream([three, gate.wait, finish()]))
    inner, writes = app.asgi_app, []

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.body" and message.get("body"):
                writes.append(message["body"])
                first_written.set()
            await send(message)

        await inner(scope, receive, counted)

    app.asgi_app = counting
    client = await serve(app)
    asking = asyncio.ensure_future(client.post("/v1/chat/completions", json=BODY))
    await first_written.wait()
    gate.set()
    await asking
    done = b"data: [DONE]\n\n"  # by itself: on_end is told before
    assert writes == [three, finish().removesuffix(done), done]


# Shutdown -----------------------------------------------------------------------------------------------------------


async def test_draining_waits_until_every_reader_has_had_its_last_event(relays: Any) -> None:
    forever, ended = asyncio.Event(), asyncio.Event()
    relay = relays(ScriptedUpstream([chunk("one"), forever.wait]))
    relay.hooks.observers.append(lambda event: ended.set() if event.kind == "ended" else None)
    handle = await relay.start(BODY, principal=ME)
    reader = await relay.read(handle)
    draining = asyncio.ensure_future(relay.drain(0))
    await ended.wait()
    for _ in range(20):  # turns for what is due at once
        await asyncio.sleep(0)
    assert not draining.done()  # after which a server cuts its connections
    *_, last = [batch async for batch in reader]
    assert (last.end.outcome, last.end.reason) == ("failed", "server_shutdown")
    await relay.readers.leave(reader)
    async with asyncio.timeout(5):
        await draining


async def test_a_stream_that_is_being_stopped_stays_stopped_when_the_server_drains(relays: Any) -> None:
    stopping, cleaned = asyncio.Event(), asyncio.Event()

    async def slow_to_stop() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopping.set()
            await cleaned.wait()

    relay = relays(ScriptedUpstream([chunk("one"), slow_to_stop]))
    handle = await relay.start(BODY, principal=ME)
    reader = await relay.read(handle)
    await anext(reader)
    await relay.stop(handle, "first")
    await stopping.wait()
    draining = asyncio.ensure_future(relay.drain(0))
    for _ in range(20):
        await asyncio.sleep(0)
    cleaned.set()
    end = await ended(relay, handle)
    assert (end.outcome, end.reason) == ("stopped", "first")
    await relay.readers.leave(reader)
    await draining


@pytest.mark.parametrize("grace", [None, 600])
async def test_a_drain_begins_with_a_grace_in_which_streams_still_start(
    create_app: CreateApp, serve: Serve, grace: float | None
) -> None:
    gate = asyncio.Event()
    app, ai = create_app(ScriptedUpstream([chunk("one"), gate.wait, finish()], "two"))
    client = await serve(app)
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    draining = asyncio.ensure_future(ai.drain(600, grace=grace, app=app))
    while (ready := await client.get("/v1/ready")).status_code == 200:
        await asyncio.sleep(0)
    assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
    answer = await client.post("/v1/chat/completions", json=BODY)
    assert (await read(answer.content)).text == "two"
    gate.set()
    assert (await read((await client.get(url)).content)).outcome == "completed"
    await ai.drain(0, app=app)  # a second signal ends the grace
    async with asyncio.timeout(5):
        await draining
    refused = await client.post("/v1/chat/completions", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")


async def test_streams_of_the_grace_may_go_on_and_later_ones_are_refused(relays: Any) -> None:
    gate = asyncio.Event()
    relay = relays(ScriptedUpstream([chunk("one"), gate.wait, finish()]))
    draining = asyncio.ensure_future(relay.drain(600, grace=0.01))
    await asyncio.sleep(0)
    handle = await relay.start(BODY, principal=ME)
    while not relay.refusing:
        await asyncio.sleep(0.001)
    with pytest.raises(Draining):
        await relay.start(BODY, principal=ME)
    assert not draining.done()
    gate.set()
    assert (await ended(relay, handle)).outcome == "completed"
    await draining


async def test_a_grace_that_has_ended_elsewhere_takes_no_time_from_the_streams(relays: Any) -> None:
    gate = asyncio.Event()
    relay = relays(ScriptedUpstream([chunk("one"), gate.wait, finish()]))
    handle = await relay.start(BODY, principal=ME)
    first = asyncio.ensure_future(relay.drain(600))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(relay.drain(600, grace=600))
    for _ in range(10):  # turns of the loop, in which it would have ended the stream
        await asyncio.sleep(0)
    gate.set()
    assert (await ended(relay, handle)).outcome == "completed"
    await asyncio.gather(first, second)


@pytest.mark.parametrize("timeout", [0, 0.02])
async def test_a_grace_is_no_longer_than_the_drain(create_app: CreateApp, serve: Serve, timeout: float) -> None:
    app, ai = create_app(ScriptedUpstream())
    client = await serve(app)
    assert (await client.get("/v1/ready")).status_code == 200
    async with asyncio.timeout(30):
        await ai.drain(timeout, grace=600, app=app)
    assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 503


async def test_draining_refuses_new_streams_and_lets_running_ones_end(create_app: CreateApp, serve: Serve) -> None:
    gate = asyncio.Event()
    app, ai = create_app(ScriptedUpstream([chunk("one"), gate.wait, chunk(" two"), finish()]))
    client = await serve(app)
    started = (await client.post("/v1/streams", json=BODY)).json()
    reading = asyncio.ensure_future(client.get(started["url"]))
    draining = asyncio.ensure_future(ai.drain(30, grace=0, app=app))
    while (await client.get("/v1/ready")).status_code == 200:
        await asyncio.sleep(0)
    refused = await client.post("/v1/chat/completions", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert int(refused.headers["retry-after"]) <= 120
    assert not draining.done()
    gate.set()
    await draining
    assert (await read((await reading).content)).outcome == "completed"


async def test_what_does_not_end_in_time_is_failed_and_says_so(create_app: CreateApp, serve: Serve) -> None:
    forever, ends = asyncio.Event(), []
    upstream = ScriptedUpstream([chunk("one"), forever.wait])
    app, ai = create_app(upstream)
    ai.on_end(lambda end: ends.append(end))
    client = await serve(app)
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    reading = [asyncio.ensure_future(client.get(url, params={"format": name})) for name in ("text", "openai")]
    plain = asyncio.ensure_future(client.post("/v1/chat/completions", json=BODY))
    while upstream.running < 2 or len(app.extensions["quart_openai_sse"][ai.name].engines.current().readers) < 3:
        await asyncio.sleep(0)
    await ai.drain(0, app=app)
    for response in [*await asyncio.gather(*reading), await plain]:
        seen = await read(response.content)
        assert (seen.outcome, seen.error["code"]) == ("failed", "server_shutdown")
    assert [end.reason for end in ends] == ["server_shutdown"] * 2
    assert upstream.running == 0


async def test_draining_without_any_stream_is_immediate(relays: Any) -> None:
    relay = relays(ScriptedUpstream())
    await relay.drain(60)
    with pytest.raises(Draining):
        await relay.start(BODY, principal=ME)


async def test_a_limit_is_freed_in_every_ending(relays: Any) -> None:
    forever = asyncio.Event()
    scripts = ["fine", [chunk("cut")], [ValueError("broken")], [chunk("hi"), forever.wait]]
    relay = relays(ScriptedUpstream(*scripts), max_streams_per_principal=1)
    for script in scripts:
        handle = await relay.start(BODY, principal=ME)
        with pytest.raises(TooManyStreams):
            await relay.start(BODY, principal=ME)
        if script is scripts[-1]:
            await relay.stop(handle, "enough")
        assert await ended(relay, handle)
        while relay.streams:
            await asyncio.sleep(0)
    assert not relay.admission.slots.taken


async def test_an_engine_that_is_closed_ends_its_streams(relays: Any) -> None:
    forever = asyncio.Event()
    relay = relays(ScriptedUpstream([chunk("hi"), forever.wait]))
    handle = await relay.start(BODY, principal=ME)
    waiting = asyncio.ensure_future(ended(relay, handle))
    await asyncio.sleep(0)
    await relay.aclose()
    end = await waiting
    assert (end.outcome, end.error.code) == ("failed", "server_shutdown")
    assert (await relay.log.read(handle.key, after=END_ID)).at_end
    assert isinstance(end.error.exception(), ServerShutdown)
