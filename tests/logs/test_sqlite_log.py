"""The example of a log of one's own keeps the contract, in one process and across two."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart

from quart_openai_sse.testing import Gate, ReadStream, ScriptedUpstream, StreamLogContract, chunk, finish, read
from tests.conftest import QUESTION, Clock, CreateApp, Serve
from tests.logs.sqlite_log import SQLiteLog
from tests.logs.two_processes import WithoutTwoProcesses, WithTwoProcesses

POLL = 0.002


class TestInOneProcess(WithoutTwoProcesses, StreamLogContract):
    """One log. The tests that need a second process are in the class below."""

    max_bytes = 16 << 20

    @pytest.fixture
    def log(self, tmp_path: Path) -> SQLiteLog:
        return SQLiteLog(tmp_path / "streams.db", poll=POLL, clock=Clock())

    async def expire(self, log: SQLiteLog) -> None:
        log.clock.now += 301

    @asynccontextmanager
    async def unreachable(self, log: SQLiteLog) -> AsyncIterator[None]:
        with closing(sqlite3.connect(log.path)) as locking:
            locking.execute("BEGIN EXCLUSIVE")
            yield

    async def lose(self, log: SQLiteLog) -> None:
        with log.transaction() as db:
            db.execute("UPDATE processes SET seen = 0 WHERE id = ?", [log.process])
        await self.find_the_dead(log)

    async def find_the_dead(self, log: SQLiteLog) -> None:
        """Does what another process does after a while."""
        third = type(log)(log.path, clock=log.clock)
        await third.open()
        await third.aclose()


class TestInTwoProcesses(WithTwoProcesses, TestInOneProcess):
    """Two logs on the same file."""

    def other(self, log: SQLiteLog) -> SQLiteLog:
        self.logs = [log, type(log)(log.path, poll=POLL, clock=log.clock)]
        return self.logs[1]

    async def find_the_dead(self, log: SQLiteLog) -> None:
        (living,) = (each for each in self.logs if each is not log)
        living.clean()


# Two apps that share the file -----------------------------------------------------------------------------------------


@pytest.fixture
def sharing_app(create_app: CreateApp, tmp_path: Path) -> Callable[[ScriptedUpstream], Quart]:
    """Makes an app that keeps its streams in the test's file."""

    def create(upstream: ScriptedUpstream) -> Quart:
        app, ai = create_app(upstream, log=lambda _: SQLiteLog(tmp_path / "streams.db"))

        @app.post("/ask")
        async def ask() -> Any:
            stream = await ai.start({"messages": QUESTION}, principal=await ai.principal(), thread="t")
            return {"id": stream.id}

        @app.get("/active")
        async def active() -> Any:
            stream = await ai.active(thread="t", principal=await ai.principal())
            return {"id": stream and stream.id}

        return app

    return create


async def test_a_stream_of_one_app_is_found_and_resumed_in_another(
    sharing_app: Callable[[ScriptedUpstream], Quart], serve: Serve
) -> None:
    gate = Gate()
    one = await serve(sharing_app(ScriptedUpstream([chunk("one"), chunk(" two"), gate, chunk(" three"), finish()])))
    other = await serve(sharing_app(ScriptedUpstream()))
    stream_id = (await one.post("/ask")).json()["id"]
    await gate.reached()
    assert (await other.get("/active")).json() == {"id": stream_id}
    begun, resumed = (
        asyncio.create_task(read_all(client, f"/v1/streams/{stream_id}", headers={"Last-Event-ID": after}))
        for client, after in ((one, ""), (other, "1"))
    )
    gate.open()
    assert [(each.text, each.outcome, each.ids) for each in (await begun, await resumed)] == [
        ("one two three", "completed", ["1", "2", "3", "end"]),
        (" two three", "completed", ["2", "3", "end"]),
    ]
    assert (await other.get("/active")).json() == {"id": None}
    assert (await other.get(f"/v1/streams/{stream_id}", headers={"Last-Event-ID": "end"})).status_code == 204


async def test_a_stream_of_one_app_is_stopped_from_another(
    sharing_app: Callable[[ScriptedUpstream], Quart], serve: Serve
) -> None:
    upstream = ScriptedUpstream([chunk("one"), asyncio.Event().wait])
    one, other = await serve(sharing_app(upstream)), await serve(sharing_app(ScriptedUpstream()))
    stream_id = (await one.post("/ask")).json()["id"]
    reading = asyncio.create_task(read_all(other, f"/v1/streams/{stream_id}"))
    assert (await other.delete(f"/v1/streams/{stream_id}")).status_code == 204
    stream = await reading
    assert stream.outcome == "stopped"
    await upstream.closed.wait()
    assert upstream.cancelled == 1


async def test_a_request_with_the_same_idempotency_key_is_one_stream_in_both_apps(
    sharing_app: Callable[[ScriptedUpstream], Quart], serve: Serve
) -> None:
    upstreams = ScriptedUpstream("one"), ScriptedUpstream("one")
    clients = [await serve(sharing_app(upstream)) for upstream in upstreams]
    body = {"messages": QUESTION, "stream": True}
    answers = await asyncio.gather(
        *(client.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "k"}) for client in clients)
    )
    assert [(await read(answer.content)).text for answer in answers] == ["one", "one"]
    assert sum(len(upstream.requests) for upstream in upstreams) == 1


async def read_all(client: httpx.AsyncClient, url: str, **options: Any) -> ReadStream:
    """The whole stream at *url*."""
    async with client.stream("GET", url, **options) as response:
        return await read(response.aiter_raw())
