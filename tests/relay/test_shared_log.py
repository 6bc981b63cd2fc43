"""What the engine does for a log that other processes see: starts, ends, lost streams."""

from __future__ import annotations

import asyncio
import datetime
import logging
from typing import Any

import httpx
import pytest
from quart import current_app

from quart_openai_sse import StreamEnd, StreamEvent
from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs import Batch, End, Entry, Kind
from quart_openai_sse.logs.entries import About
from quart_openai_sse.principal import Principal, owner_key
from quart_openai_sse.protocol.sse import SSEDecoder
from quart_openai_sse.testing import Gate, ScriptedUpstream, chunk, finish, read
from tests.conftest import QUESTION, CreateApp, Serve
from tests.relay.shared_log import SharedLog

BODY = {"messages": QUESTION}
STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
async def log() -> SharedLog:
    """A log that is shared."""
    return SharedLog()


def code(response: httpx.Response) -> str:
    """The code of an error."""
    return str(response.json()["error"]["code"])


class Site:
    """An app on a shared log, and what its hooks have seen."""

    def __init__(self, create_app: CreateApp, log: SharedLog, upstream: ScriptedUpstream, **options: Any) -> None:
        self.app, self.ai = create_app(upstream, log=lambda _: log, **options)
        self.upstream = upstream
        self.ends: list[StreamEnd] = []
        self.events: asyncio.Queue[StreamEvent] = asyncio.Queue()
        self.ai.observe(self._observe)

        @self.app.post("/ask")
        async def ask() -> Any:
            metadata = {"at": datetime.datetime(2026, 1, 1)} if await self.ai.body() else {"cid": 7}
            stream = await self.ai.start(BODY, principal=await self.ai.principal(), thread="t", metadata=metadata)
            return {"id": stream.id}

    def store_ends(self) -> None:
        """Registers an `on_end` hook."""

        @self.ai.on_end
        async def store(end: StreamEnd) -> None:
            assert current_app.name == self.app.name
            self.ends.append(end)

    async def _observe(self, event: StreamEvent) -> None:
        self.events.put_nowait(event)

    async def ended(self) -> StreamEvent:
        """The event of a stream's end, when it has come."""
        while (event := await self.events.get()).kind != "ended":
            pass
        return event


# Starts -------------------------------------------------------------------------------------------------------------


async def test_the_model_is_asked_while_the_stream_is_being_stored(
    create_app: CreateApp, serve: Serve, log: SharedLog
) -> None:
    gate = Gate()
    site = Site(create_app, log, ScriptedUpstream([gate, chunk("hi"), finish()]))
    client = await serve(site.app)
    for headers in ({}, STREAM):
        log.storing.clear()
        answer = asyncio.create_task(client.post("/v1/streams", json=BODY, headers=headers))
        await gate.reached()
        assert not answer.done()
        gate.open()
        await site.ended()
        assert not answer.done()
        log.storing.set()
        response = await answer
        assert response.status_code == (200 if headers else 201)
    assert (await read(response.content)).text == "hi"


async def test_a_start_that_cannot_be_stored_is_503_and_costs_nothing_further(
    create_app: CreateApp, serve: Serve, log: SharedLog
) -> None:
    gates = Gate(), Gate()
    site = Site(create_app, log, ScriptedUpstream(*([chunk("hi"), gate] for gate in gates)), max_streams=1)
    site.store_ends()
    client = await serve(site.app)
    log.error = LogUnavailable("The store is away.")
    for gate, headers in zip(gates, ({}, STREAM), strict=True):
        log.storing.clear()
        answer = asyncio.create_task(client.post("/v1/streams", json=BODY, headers=headers))
        await gate.reached()
        log.storing.set()
        response = await answer
        assert (response.status_code, response.json()["error"]["code"]) == (503, "log_unavailable")
        assert response.headers["Retry-After"] == "2"
        await site.ended()  # a second stream would be one too many otherwise
    assert site.upstream.cancelled == 2
    assert [(end.outcome, end.reason) for end in site.ends] == [("failed", "log_unavailable")] * 2
    assert (await client.get("/v1/streams")).json()["data"] == []


async def test_a_plain_call_waits_for_no_store(create_app: CreateApp, serve: Serve, log: SharedLog) -> None:
    site = Site(create_app, log, ScriptedUpstream("hi"))
    site.store_ends()
    client = await serve(site.app)
    log.storing.clear()
    response = await client.post("/v1/chat/completions", json={**BODY, "stream": True})
    assert (await read(response.content)).text == "hi"
    assert log.kept == {}


async def test_a_request_is_stored_only_where_there_are_hooks(
    create_app: CreateApp, serve: Serve, log: SharedLog
) -> None:
    site = Site(create_app, log, ScriptedUpstream("hi", "hi"))
    client = await serve(site.app)
    await client.post("/v1/streams", json=BODY)
    assert log.kept == {}
    site.store_ends()
    stream_id = (await client.post("/v1/streams", json=BODY)).json()["id"]
    assert [key.endswith(stream_id) for key in log.kept] == [True]


async def test_metadata_that_is_not_json_is_refused_at_the_start(
    create_app: CreateApp, serve: Serve, log: SharedLog, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(create_app, log, ScriptedUpstream("hi"))
    client = await serve(site.app)
    assert (await client.post("/ask", json={"any": "thing"})).status_code == 500
    assert "metadata['at'] is of the type datetime" in caplog.text
    assert site.upstream.requests == []
    assert (await client.post("/ask", json={})).status_code == 200


# Ends ---------------------------------------------------------------------------------------------------------------


async def test_an_end_is_decided_before_the_hooks_run(create_app: CreateApp, serve: Serve, log: SharedLog) -> None:
    site = Site(create_app, log, ScriptedUpstream("hi"))
    decided = []

    @site.ai.on_end
    async def store(end: StreamEnd) -> None:
        decided.append((end.outcome, end.attempt, [each.outcome for each in log.decided]))

    client = await serve(site.app)
    await client.post("/v1/streams", json=BODY)
    await site.ended()
    assert decided == [("completed", 1, ["completed"])]


async def test_the_hooks_do_not_run_here_if_another_process_has_ended_the_stream(
    create_app: CreateApp, serve: Serve, log: SharedLog
) -> None:
    site = Site(create_app, log, ScriptedUpstream("hi"))
    site.store_ends()
    log.decides = False
    client = await serve(site.app)
    await client.post("/v1/streams", json=BODY)
    event = await site.ended()
    assert (event.record.outcome, event.record.reason) == ("failed", "producer_lost")
    assert site.ends == []


# Streams of processes that have died ----------------------------------------------------------------------------------


def entries(events: bytes, t: float) -> list[Entry]:
    """An upstream's chunks, as the log has them."""
    return [Entry(event.data.encode(), t) for event in SSEDecoder().feed(events) if event.data != "[DONE]"]


ENTRIES = (
    *entries(chunk("Hel"), 0.5),
    *entries(chunk("lo"), 2.0),
    Entry(b'{"page":3}', 2.5, kind=Kind.EVENT, name="source"),
    *entries(finish(usage={"total_tokens": 9}), 3.0),
)


@pytest.fixture
async def lost(create_app: CreateApp, serve: Serve, log: SharedLog) -> tuple[Site, About, bytes]:
    """An app whose log can lose streams, and a stream with its stored request."""
    site = Site(create_app, log, ScriptedUpstream("hi"))
    site.store_ends()
    client: httpx.AsyncClient = await serve(site.app)
    stream_id = (await client.post("/ask", json={})).json()["id"]
    await site.ended()
    site.ends.clear()
    [request] = log.kept.values()
    return site, About(id=stream_id, thread="t", model="scripted", created=5.0), request


async def test_on_end_of_a_lost_stream_gets_what_is_stored_of_it(
    lost: tuple[Site, About, bytes], log: SharedLog, caplog: pytest.LogCaptureFixture
) -> None:
    site, about, request = lost
    caplog.set_level(logging.INFO, "quart_openai_sse.stream")
    await log.end_lost(about, request, Batch(1, ENTRIES[:2]), Batch(3, ENTRIES[2:]))
    [end] = site.ends
    assert (end.id, end.outcome, end.reason, end.attempt) == (about.id, "failed", "producer_lost", 2)
    assert (end.error.code, end.principal, end.thread) == (
        "producer_lost",
        Principal("ann", "token", cookie=False),
        "t",
    )
    assert (end.body["messages"], end.metadata, end.model) == (QUESTION, {"cid": 7}, "scripted")
    assert (end.text, end.events) == ("Hello", (("source", {"page": 3}),))
    assert (end.finish_reasons, end.usage["total_tokens"]) == ({0: "stop"}, 9)
    event = await site.ended()
    record = event.record
    assert (record.outcome, record.reason, record.status) == ("failed", "producer_lost", 503)
    assert (record.chunks, record.time_to_first_output, record.longest_gap) == (4, 0.5, 1.5)
    assert record.duration > 1000
    assert f"stream {about.id} failed (producer_lost)" in caplog.text


async def test_an_end_that_was_decided_is_the_end_that_the_hooks_get(
    lost: tuple[Site, About, bytes], log: SharedLog
) -> None:
    site, about, request = lost
    usage = {"total_tokens": 4}
    await log.end_lost(about, request, Batch(1, ENTRIES), end=End("completed", finish_reasons={0: "x"}, usage=usage))
    [end] = site.ends
    assert (end.outcome, end.error, end.finish_reasons, end.usage) == ("completed", None, {0: "x"}, usage)


async def test_without_a_stored_request_the_observers_hear_of_the_end(
    lost: tuple[Site, About, bytes], log: SharedLog, caplog: pytest.LogCaptureFixture
) -> None:
    site, about, request = lost
    for stored in (b"", request[:-9]):
        await log.end_lost(about, stored, Batch(1, ENTRIES))
        record = (await site.ended()).record
        assert (record.id, record.outcome, record.chunks) == (about.id, "failed", 4)
    assert site.ends == []
    assert "its stored request could not be read" in caplog.text


async def test_nothing_is_called_for_a_lost_stream_that_cannot_be_read_now(
    lost: tuple[Site, About, bytes], log: SharedLog
) -> None:
    site, about, request = lost
    with pytest.raises(LogUnavailable):
        await log.end_lost(about, request, Batch(1, ENTRIES), fails=True)
    assert (site.ends, site.events.qsize()) == ([], 0)


async def test_a_hook_of_a_lost_stream_has_its_time_limit(
    create_app: CreateApp, serve: Serve, log: SharedLog, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(create_app, log, ScriptedUpstream("hi"), on_end_timeout=0.01)
    release = asyncio.Event()

    @site.ai.on_end
    async def slow(end: StreamEnd) -> None:
        if end.attempt == 2:
            await release.wait()

    client = await serve(site.app)
    await client.post("/ask", json={})
    await site.ended()
    [request] = log.kept.values()
    await log.end_lost(About(id="1f"), request)
    await site.ended()
    release.set()
    assert "on_end hook" in caplog.text


# Erasure --------------------------------------------------------------------------------------------------------------


async def test_a_stream_is_erased_once_it_has_ended(create_app: CreateApp, serve: Serve, log: SharedLog) -> None:
    gate = Gate()
    site = Site(create_app, log, ScriptedUpstream([chunk("hi"), asyncio.Event().wait], "hi"))
    release = asyncio.Event()

    @site.ai.on_end
    async def store(end: StreamEnd) -> None:
        gate.open()
        await release.wait()

    client = await serve(site.app)
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    erasing = asyncio.create_task(client.delete(url, params={"erase": "1"}))
    while not site.upstream.cancelled:
        await asyncio.sleep(0)
    assert (await client.get(url, headers={"Last-Event-ID": "end"})).status_code == 400  # it runs: `on_end` does
    assert not erasing.done()
    release.set()
    assert (await erasing).status_code == 204
    assert code(await client.get(url)) == "stream_expired"
    assert (await client.delete(url, params={"erase": "1"})).status_code == 204


async def test_what_is_unknown_or_unclear_is_not_erased(create_app: CreateApp, serve: Serve, log: SharedLog) -> None:
    site = Site(create_app, log, ScriptedUpstream("hi"))
    client = await serve(site.app)
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    await site.ended()
    for value in ("yes", "", "true"):
        assert code(await client.delete(url, params={"erase": value})) == "invalid_request"
    assert (await client.delete(url, params={"erase": "0"})).status_code == 204
    assert (await read((await client.get(url)).content)).text == "hi"
    unknown = f"/v1/streams/{'0' * 32}"
    assert code(await client.delete(unknown, params={"erase": "1"})) == "stream_not_found"


async def test_a_principal_is_forgotten_by_the_log(create_app: CreateApp, serve: Serve, log: SharedLog) -> None:
    site = Site(create_app, log, ScriptedUpstream("hi"))
    me = Principal("ann", "token")
    async with site.app.app_context():
        await site.ai.forget(me)
    assert log.forgotten == [owner_key("openai_sse", me)]
