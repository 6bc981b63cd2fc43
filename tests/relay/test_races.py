"""Requests that meet: a log that takes its time, starts of one key, and limits that are reached at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from quart_openai_sse import Principal
from quart_openai_sse.config import Config
from quart_openai_sse.errors import InvalidRequest, LogUnavailable, OpenAISSEError, TooManyReaders, UpstreamTruncated
from quart_openai_sse.logs import About, End, Writer
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.logs.memory_stream import MemoryReader
from quart_openai_sse.relay.hooks import Hooks
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.testing import Gate, ScriptedUpstream, chunk, finish, read
from tests.conftest import QUESTION, Clock, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}
ME = Principal("ann")


class SlowLog(MemoryLog):
    """A log that waits for its store before and after everything it does."""

    async def create(self, key: str, *, about: About, digest: str, retain: bool) -> Writer | None:
        await asyncio.sleep(0)
        writer: Any = await super().create(key, about=about, digest=digest, retain=retain)
        await asyncio.sleep(0)
        if writer is not None:
            close = writer.close

            async def close_slowly(end: End) -> None:
                await asyncio.sleep(0)
                await close(end)
                for _ in range(20):
                    await asyncio.sleep(0)

            writer.close = close_slowly
        return writer

    async def read(self, key: str, *, after: str = "", heartbeat: float | None = None) -> MemoryReader:
        for _ in range(3):
            await asyncio.sleep(0)
        return await super().read(key, after=after, heartbeat=heartbeat)


def engine(log: MemoryLog, upstream: ScriptedUpstream, **options: Any) -> Relay:
    config = Config(base_url="http://127.0.0.1:9/v1", **options)
    return Relay(config=config, log=log, create_upstream=lambda: upstream, hooks=Hooks())


async def end_of(relay: Relay, handle: Any) -> End | None:
    reader = handle.reader or await relay.read(handle)
    end = None
    async for batch in reader:
        end = batch.end
    await relay.readers.leave(reader)
    return end


def is_idle(relay: Relay) -> bool:
    """Whether nothing runs, is counted or is read."""
    return not (len(relay.streams) or relay.admission.slots.taken or relay.memory.bodies or len(relay.readers))


async def idle(relay: Relay) -> None:
    async with asyncio.timeout(10):
        while not is_idle(relay):
            await asyncio.sleep(0)


async def test_a_key_that_is_used_again_while_its_failed_stream_is_being_closed() -> None:
    relay = engine(SlowLog(), ScriptedUpstream([UpstreamTruncated()], "Hello."))
    ended = []

    async def observe(event: Any) -> None:
        if event.kind == "ended":
            ended.append(event.record.outcome)

    relay.hooks.observers.append(observe)
    first = await relay.start(BODY, principal=ME, idempotency_key="k")
    async with asyncio.timeout(10):
        while (again := await relay.start(BODY, principal=ME, idempotency_key="k")).attached:
            await asyncio.sleep(0)
        assert again.id == first.id
        end = await end_of(relay, again)
        assert end is not None
        assert end.outcome == "completed"
        while len(ended) < 2:
            await asyncio.sleep(0)
    assert ended == ["failed", "completed"]
    await idle(relay)


async def test_readers_that_come_at_once_are_counted_before_they_are_open() -> None:
    relay = engine(SlowLog(), ScriptedUpstream([Gate()]), max_readers_per_stream=2)
    handle = await relay.start(BODY, principal=ME)
    opened = await asyncio.gather(*(relay.read(handle) for _ in range(20)), return_exceptions=True)
    readers = [each for each in opened if not isinstance(each, TooManyReaders)]
    assert len(readers) == len(relay.readers) == 2
    for reader in readers:
        await relay.readers.leave(reader)
    with pytest.raises(OpenAISSEError):
        await relay.read(relay.handle("0" * 32, ME))
    await relay.aclose()
    assert is_idle(relay)


@pytest.mark.parametrize("log", [MemoryLog(), SlowLog()], ids=["", "slow"])
async def test_many_starts_of_one_key_are_one_stream(log: MemoryLog) -> None:
    upstream = ScriptedUpstream("Hello there.")
    relay = engine(log, upstream, max_streams=2)
    handles = await asyncio.gather(*(relay.start(BODY, principal=ME, idempotency_key="k") for _ in range(30)))
    assert sum(not handle.attached for handle in handles) == 1
    for handle in handles:
        end = await end_of(relay, handle)
        assert end is not None
        assert end.outcome == "completed"
    assert len(upstream.requests) == 1
    await idle(relay)


async def test_a_refused_start_with_a_reader_takes_nothing_from_the_next_one() -> None:
    clock, asked, gate = Clock(), asyncio.Event(), asyncio.Event()
    log = MemoryLog(clock=clock, retention=300)
    relay = engine(log, ScriptedUpstream([chunk("hi"), gate.wait, finish()]))
    refusals = [InvalidRequest("No.")]

    async def prepare(body: Any, principal: Principal) -> None:
        asked.set()
        if refusals:
            await release.wait()
            raise refusals.pop()

    release = asyncio.Event()
    relay.hooks.prepare.append(prepare)
    refused = asyncio.ensure_future(relay.start(BODY, principal=ME, idempotency_key="k"))
    await asked.wait()
    attached = await relay.start(BODY, principal=ME, idempotency_key="k")
    reader = await relay.read(attached)
    release.set()
    with pytest.raises(InvalidRequest):
        await refused
    assert await relay.find(ME) == []
    third = await relay.start(BODY, principal=ME, idempotency_key="k")
    assert not third.attached
    with pytest.raises(InvalidRequest):
        await reader.opened(10)
    await relay.readers.leave(reader)
    assert [about.id for about in await relay.find(ME)] == [third.id]
    assert (await relay.start(BODY, principal=ME, idempotency_key="k")).attached
    gate.set()
    end = await end_of(relay, third)
    assert end is not None
    assert end.outcome == "completed"
    clock.now += 301
    await relay.start(BODY, principal=ME)
    clock.now += 100_000
    await relay.aclose()
    await relay.find(ME)
    assert is_idle(relay)


class WithoutEnds(MemoryLog):
    """A log that cannot store an end."""

    async def create(self, key: str, *, about: About, digest: str, retain: bool) -> Writer | None:
        async def close(end: End) -> None:
            raise OSError("The disk is full.")

        writer: Any = await super().create(key, about=about, digest=digest, retain=retain)
        if writer is not None:
            writer.close = close
        return writer


async def test_a_refusal_that_the_log_does_not_take_is_raised_all_the_same_and_ends_the_attached() -> None:
    relay = engine(WithoutEnds(), ScriptedUpstream())
    asked, release = asyncio.Event(), asyncio.Event()

    async def prepare(body: Any, principal: Principal) -> None:
        asked.set()
        await release.wait()
        raise InvalidRequest("No.")

    relay.hooks.prepare.append(prepare)
    refused = asyncio.ensure_future(relay.start(BODY, principal=ME, idempotency_key="k"))
    await asked.wait()
    reading = asyncio.ensure_future(end_of(relay, await relay.start(BODY, principal=ME, idempotency_key="k")))
    while not len(relay.readers):
        await asyncio.sleep(0)
    release.set()
    with pytest.raises(InvalidRequest):
        await refused
    async with asyncio.timeout(10):
        assert await reading is None
    assert is_idle(relay)


async def test_a_log_whose_watch_raises_leaves_nothing() -> None:
    class Unwatched(MemoryLog):
        async def create(self, key: str, *, about: About, digest: str, retain: bool) -> Writer | None:
            def watch(**functions: object) -> None:
                raise LogUnavailable

            writer: Any = await super().create(key, about=about, digest=digest, retain=retain)
            writer.watch = watch
            return writer

    relay = engine(Unwatched(), ScriptedUpstream())
    for retain in (True, False):
        with pytest.raises(LogUnavailable):
            await relay.start(BODY, principal=ME, retain=retain)
    assert is_idle(relay)


async def test_an_engine_closes_its_log_though_its_upstream_does_not_close() -> None:
    class Stuck(ScriptedUpstream):
        async def aclose(self) -> None:
            raise OSError("It does not close.")

    class Log(MemoryLog):
        closed = False

        async def aclose(self) -> None:
            self.closed = True

    log = Log()
    relay = engine(log, Stuck())
    await relay.start(BODY, principal=ME)
    with pytest.raises(OSError, match="does not close"):
        await relay.aclose()
    assert log.closed


# Over HTTP ----------------------------------------------------------------------------------------------------------


async def test_a_stream_that_could_not_be_read_is_not_started(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream([Gate()])
    app, _ = create_app(upstream, max_readers_per_principal=1)
    client = await serve(app)
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    async with client.stream("GET", url) as response:
        assert response.status_code == 200
        for path, headers in (
            ("/v1/streams", {"Accept": "text/event-stream"}),
            ("/v1/chat/completions", {"Idempotency-Key": "k"}),
        ):
            refused = await client.post(path, json=BODY, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_readers")
        assert len((await client.get("/v1/streams")).json()["data"]) == 1
    assert len(upstream.requests) == 1


async def test_plain_answers_are_no_readers_of_their_principal(create_app: CreateApp, serve: Serve) -> None:
    gate = Gate()
    app, _ = create_app(ScriptedUpstream([chunk("hi"), gate, finish()]), max_readers_per_principal=1)
    client = await serve(app)
    plain = [asyncio.ensure_future(client.post("/v1/chat/completions", json=BODY)) for _ in range(3)]
    await gate.reached()
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    reading = asyncio.ensure_future(client.get(url))
    gate.open()
    assert (await read((await reading).content)).outcome == "completed"
    assert {(await read((await each).content)).outcome for each in plain} == {"completed"}
