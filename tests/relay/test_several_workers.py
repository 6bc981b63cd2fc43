"""Several apps on one log, as several workers: what each of them finds, reads, stops, erases, and ends for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from quart_openai_sse import StreamEnd, StreamEvent
from quart_openai_sse.config import Config
from quart_openai_sse.errors import ConfigurationError, InvalidRequest, LogUnavailable
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.logs.mirror.log import MirrorLog
from quart_openai_sse.principal import Principal
from quart_openai_sse.testing import Gate, ScriptedUpstream, chunk, finish, read, serve_app
from tests.conftest import ANN, BOB, QUESTION, CreateApp, Serve
from tests.logs.mirror.memory_store import MemoryStore, SharedMemory

BODY = {"messages": QUESTION}
LEASE = 0.2
ME = Principal("ann", "token", cookie=False)


class Worker:
    """An app on a store, and a client of it."""

    def __init__(self, create_app: CreateApp, memory: SharedMemory, *steps: Any, **options: Any) -> None:
        self.store = MemoryStore(memory)
        self.upstream = ScriptedUpstream(*steps)
        self.app, self.ai = create_app(self.upstream, log=self._create_log, **options)
        self.ends: list[StreamEnd] = []
        self.ended: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.client: httpx.AsyncClient

        @self.ai.on_end
        async def store(end: StreamEnd) -> None:
            self.ends.append(end)

        @self.ai.observe
        async def observe(event: StreamEvent) -> None:
            if event.kind == "ended":
                self.ended.put_nowait((event.record.outcome, event.record.reason))

        @self.app.get("/active")
        async def active() -> Any:
            stream = await self.ai.active(thread="t", principal=await self.ai.principal())
            return {"id": stream and stream.id}

        @self.app.delete("/account")
        async def forget() -> Any:
            await self.ai.forget(await self.ai.principal())
            return "", 204

    def _create_log(self, config: Config) -> MirrorLog:
        log = MirrorLog(self.store, config, lease=LEASE)
        log.patience = 0.2
        return log

    async def start(self, **options: Any) -> str:
        """The address of a new stream."""
        response = await self.client.post("/v1/streams", json={**BODY, "thread": "t"}, **options)
        return str(response.json()["url"])

    async def read(self, url: str, **options: Any) -> Any:
        """A whole stream."""
        async with self.client.stream("GET", url, **options) as response:
            return await read(response.aiter_raw())

    async def code(self, method: str, url: str, **options: Any) -> tuple[int, str]:
        """The status, and the code of the error."""
        response = await self.client.request(method, url, **options)
        error = response.json()["error"]["code"] if response.content else ""
        return response.status_code, error


Workers = Callable[..., Any]


@pytest.fixture
async def workers(create_app: CreateApp, serve: Serve) -> Workers:
    """Starts a worker for each list of steps of its upstream."""
    memory = SharedMemory()

    async def start(*scripts: Any, **options: Any) -> list[Worker]:
        started = [Worker(create_app, memory, *script, **options) for script in scripts]
        for worker in started:
            worker.client = await serve(worker.app)
        return started

    return start


def forever() -> list[Any]:
    """The steps of an answer that does not end by itself."""
    return [chunk("hi"), asyncio.Event().wait]


# Stop ---------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def plain_call(client: httpx.AsyncClient) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
    """The address of a plain call that runs, and what is left of its response."""
    async with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response:
        pieces = response.aiter_raw()
        await anext(pieces)
        yield f"/v1/streams/{response.headers['X-Stream-Id']}", pieces


async def test_a_plain_call_is_stopped_by_its_id(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream(forever())
    app, _ = create_app(upstream)
    client = await serve(app)
    async with plain_call(client) as (url, pieces):
        assert (await client.delete(url, headers=BOB)).status_code == 404
        assert (await client.delete(url)).status_code == 204
        assert (await read(pieces)).error["code"] == "stopped"
    await upstream.closed.wait()
    assert upstream.cancelled == 1


@pytest.mark.parametrize("erase", ["0", "1"])
async def test_a_plain_call_is_stopped_from_another_worker(workers: Workers, erase: str) -> None:
    one, other = await workers([forever()], [])
    async with plain_call(one.client) as (url, pieces):
        assert await other.code("DELETE", url, headers=BOB) == (404, "stream_not_found")
        assert await other.code("DELETE", url, params={"erase": erase}) == (204, "")
        assert (await read(pieces)).error["code"] == "stopped"
    await one.upstream.closed.wait()
    assert one.upstream.cancelled == 1


async def test_a_stream_is_stopped_from_another_worker(workers: Workers) -> None:
    one, other = await workers([forever()], [])
    url = await one.start()
    reading = asyncio.create_task(other.read(url))
    assert await other.code("DELETE", url) == (204, "")
    assert (await reading).outcome == "stopped"
    assert await one.ended.get() == ("stopped", "stopped by its owner")
    assert await other.code("DELETE", url) == (204, "")


# Find, read, start ----------------------------------------------------------------------------------------------------


async def test_a_running_stream_is_found_and_resumed_in_every_worker(workers: Workers) -> None:
    gate = Gate()
    one, other = await workers([[chunk("one"), chunk(" two"), gate, chunk(" three"), finish()]], [])
    url = await one.start()
    await gate.reached()
    assert [each["url"] for each in (await other.client.get("/v1/streams")).json()["data"]] == [url]
    assert (await other.client.get("/active")).json()["id"] == url.rpartition("/")[2]
    assert (await other.client.get("/v1/streams", headers=BOB)).json()["data"] == []
    assert await other.code("GET", url, headers=BOB) == (404, "stream_not_found")
    reading = asyncio.create_task(other.read(url, headers={"Last-Event-ID": "1"}))
    gate.open()
    stream = await reading
    assert (stream.text, stream.outcome, stream.ids) == (" two three", "completed", ["2", "3", "end"])
    assert (await other.client.get("/active")).json()["id"] is None
    assert (await other.client.get(url, headers={"Last-Event-ID": "end"})).status_code == 204


async def test_a_reader_of_another_worker_keeps_a_stream_and_its_leaving_ends_it(workers: Workers) -> None:
    gate = Gate()
    steps = [chunk("hi"), gate, chunk(" there"), asyncio.Event().wait]
    one, other = await workers([steps, forever()], [], linger=1)
    url = await one.start()
    async with other.client.stream("GET", url) as response:
        pieces = response.aiter_raw()
        await anext(pieces)
        await one.start()  # a later stream, which nobody reads
        assert await one.ended.get() == ("stopped", "client_left")
        assert one.ended.empty()
        gate.open()
        while b"there" not in await anext(pieces):
            pass
    assert await one.ended.get() == ("stopped", "client_left")


async def test_an_idempotency_key_names_one_stream_in_all_workers(workers: Workers) -> None:
    one, other = await workers(["one"], ["one"])
    body = {**BODY, "stream": True}
    calls = [
        worker.client.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "k"})
        for worker in (one, other)
    ]
    responses = await asyncio.gather(*calls)
    assert [(await read(response.content)).text for response in responses] == ["one", "one"]
    assert len(one.upstream.requests) + len(other.upstream.requests) == 1
    reused = {"json": {**body, "seed": 5}, "headers": {"Idempotency-Key": "k"}}
    for worker in (one, other):
        assert await worker.code("POST", "/v1/chat/completions", **reused) == (422, "idempotency_key_reused")


# Erase ----------------------------------------------------------------------------------------------------------------


async def test_a_stream_is_erased_from_another_worker(workers: Workers) -> None:
    one, other, third = await workers([forever(), "hi"], [], [])
    running, ended = await one.start(), await one.start()
    await one.ended.get()
    assert (await third.read(ended)).text == "hi"
    for url in (running, ended):
        assert await other.code("DELETE", url, params={"erase": "1"}) == (204, "")
        for worker in (one, other, third):
            assert await worker.code("GET", url) == (410, "stream_expired")
    assert await other.code("DELETE", ended, params={"erase": "1"}) == (204, "")
    memory = one.store.memory
    assert b"hi" not in b"".join(b"".join(stream.batches) for stream in memory.streams.values())


async def test_a_principal_is_forgotten_in_all_workers(workers: Workers) -> None:
    one, other = await workers([forever(), "hi"], [forever()])
    urls = [await one.start(), await one.start(), await other.start()]
    of_bob = await one.start(headers=BOB)
    async with plain_call(other.client) as (_, pieces):
        assert (await other.client.delete("/account")).status_code == 204
        assert (await read(pieces)).error["code"] == "stopped"
    for worker in (one, other):
        assert [await worker.code("GET", url) for url in urls] == [(410, "stream_expired")] * 3
        assert (await worker.client.get("/v1/streams")).json()["data"] == []
        assert await worker.code("GET", of_bob, headers={**BOB, "Last-Event-ID": "9"}) == (400, "invalid_last_event_id")


async def test_streams_of_anonymous_callers_cannot_be_forgotten(workers: Workers) -> None:
    (worker,) = await workers([])
    async with worker.app.app_context():
        with pytest.raises(InvalidRequest, match="anonymous callers"):
            await worker.ai.forget(Principal("", "anonymous", anonymous=True))


# A worker that dies ---------------------------------------------------------------------------------------------------


async def test_on_end_of_a_worker_that_has_died_runs_once_in_one_that_lives(workers: Workers) -> None:
    gate = Gate()
    one, *living = await workers([[chunk("Hel"), chunk("lo"), gate, finish()]], [], [])
    url = await one.start()
    reading = asyncio.create_task(living[0].read(url))
    await gate.reached()
    await until(lambda: any(stream.state.count == 2 for stream in one.store.memory.streams.values()))
    one.store.freeze()
    stream = await reading
    assert (stream.text, stream.outcome, stream.error["code"]) == ("Hello", "failed", "producer_lost")
    assert (await living[1].read(url)).error["code"] == "producer_lost"
    [end] = living[0].ends + living[1].ends
    assert (end.outcome, end.reason, end.text, end.attempt) == ("failed", "producer_lost", "Hello", 2)
    assert (end.principal, end.thread, end.body["messages"]) == (ME, "t", QUESTION)
    # The process was only frozen: it finds out, and its hooks are not called.
    gate.open()
    one.store.thaw()
    assert await one.ended.get() == ("failed", "producer_lost")
    assert one.ends == []


async def test_the_end_that_a_dead_worker_had_decided_is_its_end(workers: Workers) -> None:
    one, other = await workers(["hi"], [])
    hook = Gate()

    @one.ai.on_end
    async def hang(end: StreamEnd) -> None:
        one.store.freeze()
        hook.open()
        await asyncio.Event().wait()

    url = await one.start()
    stream = await other.read(url)
    assert (stream.text, stream.outcome) == ("hi", "completed")
    assert [(end.outcome, end.text, end.attempt) for end in other.ends] == [("completed", "hi", 2)]
    one.store.thaw()


# A store that is away -------------------------------------------------------------------------------------------------


async def test_a_worker_without_its_store_is_not_ready_and_refuses_what_it_cannot_keep(workers: Workers) -> None:
    gate = Gate()
    one, other = await workers([[chunk("one"), gate, chunk(" two"), finish()], "plain"], [])
    url = await one.start()
    await gate.reached()
    for worker in (one, other):
        worker.store.disconnect()
        assert (await worker.client.get("/v1/ready")).json() == {"status": "log unavailable"}
        assert (await worker.client.get("/v1/health")).status_code == 200
    assert await one.code("POST", "/v1/streams", json=BODY) == (503, "log_unavailable")
    assert await one.ended.get() == ("failed", "log_unavailable")
    assert await other.code("GET", url) == (503, "log_unavailable")
    assert await other.code("DELETE", url) == (503, "log_unavailable")
    reading = asyncio.create_task(one.read(url))
    gate.open()
    assert (await reading).text == "one two"
    for worker in (one, other):
        worker.store.connect()
        assert (await worker.client.get("/v1/ready")).json() == {"status": "ready"}
    assert (await other.read(url)).text == "one two"


async def test_a_reader_gets_an_end_that_cannot_be_stored_yet(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    (one,) = await workers([[chunk("one"), gate, finish()]])
    async with one.app.app_context():
        stream = await one.ai.start(BODY, principal=ME)
        async with stream.events() as items:
            assert (await anext(items)).text == "one"
            one.store.disconnect()
            gate.open()
            assert (await one.ended.get())[0] == "completed"  # the reader has not asked for more meanwhile
            *_, last = [item async for item in items]
        one.store.connect()
    assert last.name == "completed"
    (line,) = [line for line in caplog.records if line.name == "quart_openai_sse" and "the end" in line.getMessage()]
    assert (line.levelname, line.exc_info) == ("WARNING", None)


async def test_a_store_that_is_away_at_the_start_is_a_warning(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(create_app, SharedMemory(), "hi")
    worker.store.disconnect()
    worker.client = await serve(worker.app)
    assert (await worker.client.get("/v1/ready")).status_code == 503
    assert "the stream log is unavailable" in caplog.text
    worker.store.down = ""
    assert (await worker.client.get("/v1/ready")).status_code == 200
    assert (await worker.read(await worker.start())).text == "hi"


async def test_a_store_that_can_never_be_used_keeps_the_server_from_starting(create_app: CreateApp) -> None:
    log = Refusing()
    app, _ = create_app(ScriptedUpstream("hi"), log=lambda _: log)
    with pytest.raises(ConfigurationError, match="refuses the password"):
        await app.startup()
    await app.shutdown()


async def test_a_store_that_turns_out_to_be_unusable_later_is_not_ready(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    log = Refusing()
    log.error = LogUnavailable("The server is loading.")
    app, _ = create_app(ScriptedUpstream("hi"), log=lambda _: log)
    client = await serve(app)
    for error in (log.error, ConfigurationError("The Redis server refuses the password.")):
        log.error = error
        response = await client.get("/v1/ready")
        assert (response.status_code, response.json()) == (503, {"status": "log unavailable"})
    assert "refuses the password" in caplog.text


class Refusing(MemoryLog):
    """A log that cannot be opened."""

    error: Exception = ConfigurationError("The Redis server refuses the password.")

    async def open(self) -> None:
        raise self.error


# Shutdown -------------------------------------------------------------------------------------------------------------


async def test_the_ends_of_a_shutdown_are_stored_before_the_worker_goes(
    create_app: CreateApp, workers: Workers
) -> None:
    (other,) = await workers([])
    worker = Worker(create_app, other.store.memory, forever())
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serve_app(worker.app))
        worker.client = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://{address}", headers=ANN))
        url = await worker.start()
        async with worker.app.app_context():
            await worker.ai.drain(0, app=worker.app)
        # Not later, when the log is closed.
        [state] = [stream.state for stream in other.store.memory.streams.values()]
        assert state.end
    stream = await other.read(url)
    assert (stream.outcome, stream.error["code"]) == ("failed", "server_shutdown")
    assert [end.reason for end in worker.ends] == ["server_shutdown"]
    assert other.ends == []


async def test_a_worker_goes_although_its_store_is_away(
    create_app: CreateApp, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(create_app, SharedMemory(), forever())
    async with asyncio.timeout(20), AsyncExitStack() as stack:
        address = await stack.enter_async_context(serve_app(worker.app))
        worker.client = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://{address}", headers=ANN))
        await worker.start()
        worker.store.freeze()  # worse than away: no call returns
    assert [end.reason for end in worker.ends] == ["server_shutdown"]
    worker.store.thaw()


async def until(condition: Callable[[], bool]) -> None:
    """Returns when *condition* holds."""
    while not condition():
        await asyncio.sleep(0.005)
