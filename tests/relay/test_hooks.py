"""How hooks are called: where, for how long, and what a hook that hangs does to the others."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from quart import current_app, g, request, session

from quart_openai_sse import Principal, QuartOpenAISSE, StreamEnd, StreamEvent, StreamRecord, session_user
from quart_openai_sse.config import Config
from quart_openai_sse.errors import HookTimeout, InvalidRequest, OpenAISSEError
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.relay import bounded_calls, deliveries
from quart_openai_sse.relay.bounded_calls import RateLimitedLog
from quart_openai_sse.relay.hooks import Hooks
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.threads import HookThreads
from quart_openai_sse.simulator import Simulator
from quart_openai_sse.testing import ScriptedUpstream, read
from tests.conftest import ANN, QUESTION, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}
ME = Principal("ann")
FORTY = 40  # hooks that hang at once


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hanging threads wait for; it is opened after the test."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
async def relays(gate: threading.Event) -> AsyncIterator[Any]:
    """Makes engines without any Quart around them."""
    made = []

    def create(upstream: Any = "hello", **options: Any) -> Relay:
        config = Config(base_url="http://127.0.0.1:9/v1", **options)
        scripted = ScriptedUpstream(upstream)
        relay = Relay(config=config, log=MemoryLog(), create_upstream=lambda: scripted, hooks=Hooks())
        made.append(relay)
        return relay

    yield create
    gate.set()
    for relay in made:
        await relay.aclose()


class LoopClock:
    """The event loop's clock, which can be put forward: time limits are over when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: time.monotonic() + self._ahead)

    def put_forward(self, seconds: float) -> None:
        self._ahead += seconds


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> LoopClock:
    return LoopClock(monkeypatch)


async def outcome(relay: Relay, **options: Any) -> str:
    """Runs a stream to its end."""
    handle = await relay.start(BODY, principal=ME, **options)
    reader = handle.reader or await relay.read(handle)
    try:
        async for batch in reader:
            if batch.end is not None:
                return str(batch.end.outcome)
    finally:
        await relay.readers.leave(reader)
    raise AssertionError


async def until(condition: Any) -> None:
    """Returns when *condition* holds; looks now and then, since it may depend on a thread."""
    while not condition():
        await asyncio.sleep(0.001)


async def occupy(threads: HookThreads, gate: threading.Event) -> None:
    """Occupies a thread by a call that hangs."""
    begun = threading.Event()
    call = threads.submit(lambda: begun.set() or gate.wait())
    await until(begun.is_set)
    call.leave()


# Where --------------------------------------------------------------------------------------------------------------


async def in_a_coroutine(*args: Any) -> None:
    pass


async def test_hooks_run_in_threads_of_their_own_and_coroutines_on_the_loop(relays: Any) -> None:
    relay, seen = relays(), []

    def plain(*args: Any) -> None:
        seen.append(threading.current_thread().name)

    async def coroutine(*args: Any) -> None:
        seen.append(threading.current_thread().name)

    for hook in (plain, coroutine, lambda *args: coroutine(*args)):
        relay.hooks.prepare.append(hook)
        relay.hooks.on_end.append(hook)
        relay.hooks.observers.append(hook)
    assert await outcome(relay) == "completed"
    await until(lambda: len(seen) == 3 + 3 + 9)
    main = threading.current_thread().name
    assert {name: seen.count(name) for name in seen} == {
        "quart_openai_sse prepare hook": 1,
        "quart_openai_sse on_end hook": 1,
        "quart_openai_sse observe hook": 3,
        main: 10,
    }


async def test_no_thread_is_started_where_no_hook_needs_one(relays: Any) -> None:
    relay = relays()
    for hooks in (relay.hooks.prepare, relay.hooks.on_end, relay.hooks.observers):
        hooks.append(in_a_coroutine)
    assert await outcome(relay) == "completed"
    calls = relay.hook_calls
    assert [each.threads._threads for each in (calls.auth, calls.prepare, calls.on_end, calls.observe)] == [0, 0, 0, 0]


async def test_a_plain_prepare_hook_sees_the_request_and_what_the_app_put_into_g(
    create_app: CreateApp, serve: Serve
) -> None:
    app, ai = create_app(ScriptedUpstream())
    seen = []

    @app.before_request
    async def remember() -> None:
        g.tenant = "blue"

    @ai.prepare
    def prepare(body, principal):
        seen.append((current_app.name, request.path, g.tenant))

    client = await serve(app)
    assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 200
    assert seen == [(app.name, "/v1/chat/completions", "blue")]


async def test_g_of_the_request_is_not_that_of_a_model_or_of_on_end(create_app: CreateApp, serve: Serve) -> None:
    """A request may be over before its stream: what its teardown closes must not be in use there."""
    app, ai = create_app(ScriptedUpstream())
    seen = []

    @app.before_request
    async def remember() -> None:
        g.tenant = "blue"

    @ai.model("own")
    async def own(chat):
        seen.append(("model", "tenant" in g, chat.metadata["tenant"]))
        g.mine = True
        yield "hi"

    @ai.on_end
    async def on_end(end):
        seen.append(("on_end", "tenant" in g, end.metadata["tenant"]))
        seen.append(("the model's", "mine" in g))

    @app.post("/ask")
    async def ask():
        stream = await ai.start({**BODY, "model": "own"}, principal=ME, metadata={"tenant": g.tenant})
        return await stream.response()

    client = await serve(app)
    assert (await read((await client.post("/ask")).content)).text == "hi"
    assert seen == [("model", False, "blue"), ("on_end", False, "blue"), ("the model's", True)]


tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


@pytest.mark.parametrize("kind", ["plain", "coroutine", "lambda"])
async def test_what_prepare_puts_into_a_context_variable_reaches_the_view_and_the_model(
    create_app: CreateApp, serve: Serve, kind: str
) -> None:
    app, ai = create_app(ScriptedUpstream())
    seen = []

    def plain(body: Any, principal: Principal) -> None:
        seen.append(tenant.get())
        tenant.set(tenant.get() + " blue")

    async def coroutine(body: Any, principal: Principal) -> None:
        plain(body, principal)

    hook = {"plain": plain, "coroutine": coroutine, "lambda": lambda *args: coroutine(*args)}[kind]
    ai.prepare(hook)
    ai.prepare(hook)

    @ai.model("own")
    async def own(chat):
        seen.append(tenant.get())
        yield "hi"

    @app.post("/ask")
    async def ask():
        stream = await ai.start({**BODY, "model": "own"}, principal=ME)
        seen.append(tenant.get())
        return await stream.response()

    client = await serve(app)
    assert (await read((await client.post("/ask")).content)).text == "hi"
    assert sorted(seen) == ["none", "none blue", "none blue blue", "none blue blue"]


async def test_a_refusal_by_prepare_leaves_its_context_variables(relays: Any) -> None:
    async def refuse(body: Any, principal: Principal) -> None:
        tenant.set("refused")
        raise InvalidRequest("No.")

    relay = relays()
    relay.hooks.prepare.append(refuse)
    with pytest.raises(InvalidRequest):
        await relay.start(BODY, principal=ME)
    assert tenant.get() == "refused"


# prepare ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "coroutine", "coroutine that swallows its cancellation", "lambda"])
async def test_a_prepare_hook_that_takes_too_long_is_a_refusal(
    create_app: CreateApp, serve: Serve, gate: threading.Event, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    upstream, released = ScriptedUpstream(), asyncio.Event()
    app, ai = create_app(upstream, prepare_timeout=0.01)

    async def forever(*args: Any) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                if "swallows" not in kind:
                    raise

    def hangs(body, principal):
        gate.wait() if kind == "plain" else None
        return forever() if kind == "lambda" else None

    ai.prepare(hangs if kind in ("plain", "lambda") else forever)
    client = await serve(app)
    response = await client.post("/v1/chat/completions", json=BODY, headers={**ANN, "Idempotency-Key": "k"})
    released.set()
    error = response.json()["error"]
    assert (response.status_code, error["code"], response.headers["retry-after"]) == (503, "hook_timeout", "5")
    assert "hook 'hangs'" in caplog.text or "hook 'forever'" in caplog.text
    assert HookTimeout.side == "app"
    assert not upstream.requests
    engine = app.extensions["quart_openai_sse"][ai.name].engines.current()
    assert not engine.admission.slots.taken
    gate.set()
    await until(lambda: engine.hook_calls.prepare.hanging == 0)
    ai.hooks.prepare.clear()
    again = await client.post("/v1/chat/completions", json=BODY, headers={**ANN, "Idempotency-Key": "k"})
    assert (await read(again.content)).outcome == "completed"


async def test_a_prepare_hook_that_cancels_itself_has_failed(relays: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def cancels(body: Any, principal: Principal) -> None:
        raise asyncio.CancelledError

    relay = relays()
    relay.hooks.prepare.append(cancels)
    with pytest.raises(OpenAISSEError, match="was cancelled"):
        await relay.start(BODY, principal=ME)
    assert "prepare hook 'cancels' was cancelled" in caplog.text


async def test_a_prepare_hook_ends_with_the_request_that_leaves(relays: Any) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def prepare(body: Any, principal: Principal) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    relay = relays()
    relay.hooks.prepare.append(prepare)
    starting = asyncio.ensure_future(relay.start(BODY, principal=ME))
    await begun.wait()
    starting.cancel()
    await ended.wait()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert not relay.admission.slots.taken


async def test_a_hook_that_would_wait_for_a_thread_for_too_long_is_not_called(
    relays: Any, clock: LoopClock, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    relay, called = relays(prepare_timeout=5, hook_threads=2), []
    calls = relay.hook_calls.prepare

    def hang(body: Any, principal: Principal) -> None:
        called.append(threading.current_thread())
        gate.wait()

    relay.hooks.prepare.append(hang)
    for begun, waiting in [(1, 0), (2, 0), (2, 1), (2, 1)]:
        starting = asyncio.ensure_future(relay.start(BODY, principal=ME))
        await until(lambda state=(begun, waiting): (len(called), len(calls.threads._waiting)) == state)
        clock.put_forward(5)
        with pytest.raises(HookTimeout):
            await starting
    assert (len(called), calls.hanging, calls.late, calls.skipped) == (2, 2, 2, 2)
    assert (
        "prepare hook 'hang' was not called: all threads (2) are in use; late calls still running: 2; " in caplog.text
    )
    gate.set()
    await until(lambda: calls.hanging == 0)
    assert len(called) == 2


async def test_what_a_hook_is_given_is_a_copy_and_other_objects_in_it_are_the_same(relays: Any) -> None:
    relay, given = relays(), []
    other = threading.Lock()  # which can't be copied
    body = {**BODY, "metadata": {"a": [1, {"b": other}]}}

    async def change(body: Any, principal: Principal) -> None:
        given.append(body["metadata"]["a"][1]["b"])
        body["metadata"]["a"].append(2)
        body["messages"][0]["content"] = "x"
        raise InvalidRequest("Enough.")

    relay.hooks.prepare.append(change)
    with pytest.raises(InvalidRequest, match="Enough"):
        await relay.start(body, principal=ME)
    assert given == [other]
    assert body == {**BODY, "metadata": {"a": [1, {"b": other}]}}
    assert body["messages"][0] == QUESTION[0] != "x"


# on_end -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_late_on_end_hook_goes_on_and_stores_the_answer(
    relays: Any, clock: LoopClock, gate: threading.Event, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    relay, stored, opened, begun = relays(on_end_timeout=5), [], asyncio.Event(), threading.Event()

    def store(end: StreamEnd) -> None:
        begun.set()
        gate.wait()
        stored.append(end.text)

    async def store_later(end: StreamEnd) -> None:
        begun.set()
        await opened.wait()
        stored.append(end.text)

    relay.hooks.on_end.append(store if kind == "plain" else store_later)
    ending = asyncio.ensure_future(outcome(relay))
    await until(begun.is_set)
    clock.put_forward(5)
    assert await ending == "completed"
    calls = relay.hook_calls.on_end
    assert (stored, calls.hanging) == ([], 1)
    gate.set()
    opened.set()
    await until(lambda: calls.hanging == 0)
    assert stored == ["hello"]
    [warning] = [each for each in caplog.records if each.levelno == logging.WARNING]
    name = "store" if kind == "plain" else "store_later"
    assert warning.getMessage() == (
        f"on_end hook {name!r} has been running for more than 5 s; still running: 1; late in total: 1"
    )
    assert (warning.hook, warning.hanging, warning.late) == (name, 1, 1)


async def test_only_so_many_late_hooks_go_on(relays: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_calls, "_MAX_LATE", 2)
    relay, cancelled = relays(on_end_timeout=0.001), []

    async def forever(end: StreamEnd) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(end.id)
            raise

    relay.hooks.on_end.append(forever)
    for _ in range(5):
        assert await outcome(relay) == "completed"
    await until(lambda: len(cancelled) == 3)
    await until(lambda: relay.hook_calls.on_end.hanging == 2)
    for task in list(relay.hook_calls.on_end._going_on):
        task.cancel()


async def test_a_stream_ends_where_no_thread_is_left_for_its_on_end(
    relays: Any, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    relay, called = relays(on_end_timeout=0.01, hook_threads=1), []
    calls = relay.hook_calls.on_end
    await occupy(calls.threads, gate)

    def store(end: StreamEnd) -> None:
        called.append(end.id)

    relay.hooks.on_end.append(store)
    assert [await outcome(relay) for _ in range(3)] == ["completed"] * 3
    assert (called, calls.skipped) == ([], 3)
    assert (
        "on_end hook 'store' was not called: all threads (1) are in use; late calls still running: 1; " in caplog.text
    )
    assert [each.levelname for each in caplog.records if "was not called" in each.getMessage()] == ["ERROR"]


async def cancelled_by_a_library(*args: Any) -> None:
    """Ends as a hook does that awaits a task which something else has cancelled."""
    raise asyncio.CancelledError


async def test_a_cancelled_hook_is_logged_as_an_error(relays: Any, caplog: pytest.LogCaptureFixture) -> None:
    relay = relays()
    relay.hooks.on_end.append(cancelled_by_a_library)
    relay.hooks.observers.append(cancelled_by_a_library)
    assert await outcome(relay) == "completed"
    expected = {"on_end hook 'cancelled_by_a_library' was cancelled": 1}
    expected["observe hook 'cancelled_by_a_library' was cancelled"] = 3
    await until(lambda: sum("was cancelled" in each.getMessage() for each in caplog.records) == 4)
    assert {text: caplog.text.count(text) for text in expected} == expected
    assert caplog.text.count("in cancelled_by_a_library\n") == 4  # the traceback
    assert {each.levelname for each in caplog.records if "was cancelled" in each.getMessage()} == {"ERROR"}


async def test_a_late_on_end_hook_that_is_cancelled_is_logged_as_an_error(
    relays: Any, caplog: pytest.LogCaptureFixture
) -> None:
    relay, opened = relays(on_end_timeout=0.001), asyncio.Event()

    async def store(end: StreamEnd) -> None:
        await opened.wait()
        raise asyncio.CancelledError

    relay.hooks.on_end.append(store)
    assert await outcome(relay) == "completed"
    opened.set()
    await until(lambda: relay.hook_calls.on_end.hanging == 0)
    await until(lambda: "on_end hook 'store' was cancelled" in caplog.text)


async def test_a_call_that_no_thread_has_begun_does_not_count_the_threads_as_in_use(
    relays: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(HookThreads, "_start_thread", lambda threads, call: None)
    relay = relays(on_end_timeout=0.001)
    relay.hooks.on_end.append(len)
    assert await outcome(relay) == "completed"
    assert (
        "on_end hook 'len' was not called: none of at most 64 threads has begun the call in time; "
        "late calls still running: 0; calls skipped in total: 1"
    ) in caplog.text


# Observers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_the_events_of_a_stream_arrive_in_order_however_slow_the_observer(
    relays: Any, gate: threading.Event, kind: str
) -> None:
    relay, told, opened = relays(), [], asyncio.Event()
    finish, first = threading.Event(), "started"

    def plain(event: StreamEvent) -> None:
        if event.kind == first:
            gate.wait()
        told.append((event.record.id, event.kind))
        if len(told) == 6:
            finish.set()

    async def coroutine(event: StreamEvent) -> None:
        if event.kind == first:
            await opened.wait()
        plain(event)

    relay.hooks.observers.append(plain if kind == "plain" else coroutine)
    gate.set() if kind != "plain" else None
    assert [await outcome(relay) for _ in range(2)] == ["completed"] * 2
    assert told == []
    gate.set()
    opened.set()
    await until(finish.is_set)
    of_each = [[what for found, what in told if found == each] for each in dict(told)]
    assert of_each == [["started", "first_chunk", "ended"]] * 2


async def test_each_event_is_told_in_its_own_context(relays: Any) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="")
    relay, told = relays(), []

    async def observer(event: StreamEvent) -> None:
        told.append((event.kind, name.get()))

    relay.hooks.observers.append(lambda event: told.append((event.kind, name.get())))
    relay.hooks.observers.append(observer)
    record = StreamRecord(id="1")
    for kind in ("started", "retried", "ended"):
        name.set(kind)
        relay.hooks.observe(kind, record, calls=relay.hook_calls)
    name.set("later")
    await until(lambda: len(told) == 6)
    assert set(told) == {("started", "started"), ("retried", "retried"), ("ended", "ended")}


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_an_observer_that_hangs_is_given_up_and_told_the_next_event(
    relays: Any, clock: LoopClock, gate: threading.Event, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    relay, told = relays(observe_timeout=5), []

    def plain(event: StreamEvent) -> None:
        told.append(event.kind)
        gate.wait()

    async def coroutine(event: StreamEvent) -> None:
        told.append(event.kind)
        await asyncio.Event().wait()

    relay.hooks.observers.append(plain if kind == "plain" else coroutine)
    assert await outcome(relay) == "completed"
    for number, name in enumerate(["started", "first_chunk", "ended"], 1):
        await until(lambda number=number: len(told) == number)
        assert told[-1] == name
        clock.put_forward(5)
    await until(lambda: relay.hook_calls.observe.late == 3)
    await until(lambda: relay.hook_calls.observe.hanging == (3 if kind == "plain" else 0))
    assert f"observe hook {kind!r} has been running for more than 5 s" in caplog.text


async def test_events_that_no_thread_can_deliver_are_dropped_and_counted(
    relays: Any, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    relay = relays(observe_timeout=0.01, hook_threads=1)
    await occupy(relay.hook_calls.observe.threads, gate)
    relay.hooks.observers.append(lambda event: None)
    assert await outcome(relay) == "completed"
    await until(lambda: relay.hook_calls.deliveries.dropped == 3)
    [warning] = [each for each in caplog.records if "dropped" in each.getMessage()]
    assert warning.getMessage() == "observer '<lambda>' is too slow; events dropped so far: 1"
    assert (warning.hook, warning.dropped) == ("<lambda>", 1)


async def test_only_so_many_events_are_pending_for_an_observer_and_none_for_another(
    relays: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "MAX_PENDING", 4)
    relay, opened, slow, quick = relays(), asyncio.Event(), [], []

    async def slow_one(event: StreamEvent) -> None:
        await opened.wait()
        slow.append(event.kind)

    async def quick_one(event: StreamEvent) -> None:
        quick.append(event.kind)

    relay.hooks.observers.append(slow_one)
    relay.hooks.observers.append(quick_one)
    for _ in range(3):
        assert await outcome(relay) == "completed"
    await until(lambda: len(quick) == 9)
    assert relay.hook_calls.deliveries.dropped == 5
    opened.set()
    await until(lambda: len(slow) == 4)
    assert await outcome(relay) == "completed"
    await until(lambda: len(slow) == 7)
    assert relay.hook_calls.deliveries.dropped == 5
    await until(lambda: not any(each._pending for each in relay.hook_calls.deliveries._observers))


# All of them --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prepare", "on_end", "observe", "load"])
async def test_forty_hooks_that_hang_change_nothing_for_other_streams(
    create_app: CreateApp, serve: Serve, simulator: Simulator, gate: threading.Event, kind: str
) -> None:
    """The upstream has a name, which is looked up for each new connection."""
    base_url = simulator.base_url.replace("127.0.0.1", "localhost")
    options = {"base_url": base_url, "max_keepalive_connections": 1, "connect_timeout": 1}
    app, ai = create_app(None, **options, max_streams_per_principal=100, model="sim-fast")
    hanging = []

    def hang(*args: Any) -> bool | None:
        if len(hanging) < FORTY:
            hanging.append(args)
            gate.wait()
        return True if kind == "load" else None

    if kind == "load":
        ai._auth = session_user(load=hang)
    else:
        getattr(ai, kind)(hang)

    @app.before_request
    async def log_in() -> None:
        session["_user_id"] = "ann"

    @app.post("/ask")
    async def ask():
        stream = await ai.start({"messages": QUESTION}, principal=await ai.principal())
        return {"id": stream.id}

    @app.post("/first")
    async def first():
        stream = await ai.start({"messages": QUESTION}, principal=await ai.principal())
        async with stream.events() as events:
            return {"first": (await anext(events)).name}

    client = await serve(app)
    asked = [asyncio.ensure_future(client.post("/ask")) for _ in range(FORTY)]
    await until(lambda: len(hanging) == FORTY)
    response = await client.post("/first")
    assert (response.status_code, response.json()) == (200, {"first": "chunk"})
    gate.set()
    await asyncio.gather(*asked)


# Nested bodies ------------------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    """A request that is nested *depth* levels deep."""
    deep = b'{"a":' * (depth - 1) + b"1" + b"}" * (depth - 1)
    return b'{"model":"scripted","messages":[{"role":"user","content":"hi"}],"metadata":%b}' % deep


DEPTHS = [100, 101, 300, 480, 700, 900, 940, 980, 990, 1000, 5000]


def pass_on(ai: QuartOpenAISSE, through: str) -> None:
    """Registers a hook of the kind *through* that changes nothing."""
    if through == "prepare":
        ai.prepare(lambda body, principal: {**body})
    elif through == "model":

        @ai.model("scripted")
        async def scripted(chat: Any) -> Any:
            async for each in chat.call("sim-fast", chat.messages, metadata=chat.body["metadata"]):
                yield each

    elif through == "transform":

        @ai.transform
        async def transform(items: Any, chat: Any) -> Any:
            async for item in items:
                yield item


@pytest.mark.parametrize("through", ["nothing", "prepare", "transform", "model"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/streams", "/ask"])
async def test_a_body_is_a_400_or_works_however_deeply_it_is_nested(
    create_app: CreateApp, serve: Serve, simulator: Simulator, path: str, through: str
) -> None:
    app, ai = create_app(None, base_url=simulator.base_url, max_streams_per_principal=1000)
    pass_on(ai, through)

    @app.post("/ask")
    async def ask():
        key = request.headers.get("Idempotency-Key", "")
        return await (await ai.start(await ai.body(), principal=ME, idempotency_key=key)).response()

    client = await serve(app)
    name = b"scripted" if through == "model" else b"sim-fast"
    for depth, key in itertools.product(DEPTHS, ["", "key"]):
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": f"{key}-{depth}"} if key else {})
        content = nested(depth).replace(b"scripted", name)
        response = await client.post(path, content=content, headers=headers)
        if depth <= 100:
            assert response.is_success
        else:
            assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")


async def test_a_body_that_contains_itself_is_refused(relays: Any) -> None:
    body: dict[str, Any] = dict(BODY)
    body["metadata"] = {"again": [body]}
    relay = relays()
    for key in ("", "k"):
        with pytest.raises(InvalidRequest, match="nested more than 100"):
            await relay.start(body, principal=ME, idempotency_key=key)


async def test_a_prepare_hook_cannot_nest_a_body_too_deeply(relays: Any) -> None:
    def nest(body: Any, principal: Principal) -> Any:
        deep: list[Any] = []
        for _ in range(5000):
            deep = [deep]
        return {**body, "metadata": deep}

    relay = relays()
    relay.hooks.prepare.append(nest)
    with pytest.raises(InvalidRequest, match="nested more than 100"):
        await relay.start(BODY, principal=ME)


# Warnings -----------------------------------------------------------------------------------------------------------


async def test_a_flood_of_warnings_is_two_the_first_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_calls, "_QUIET", 0)
    said: list[int] = []
    log = RateLimitedLog()
    for number in range(1000):
        log.log(functools.partial(said.append, number))
    assert said == [0]
    await until(lambda: log._timer is None)
    assert said == [0, 999]
    log.log(functools.partial(said.append, 1000))
    assert said == [0, 999, 1000]
