"""The readers of streams: how many there may be, and what ends them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from quart_openai_sse.config import Config
from quart_openai_sse.errors import TooManyReaders
from quart_openai_sse.relay.readers import Readers
from quart_openai_sse.relay.running import StreamHandle
from quart_openai_sse.testing import ScriptedUpstream, read
from tests.conftest import BOB, QUESTION, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION}


class Closable:
    """As much of a reader as is closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1


def handle(key: str, owner: str = "ann") -> StreamHandle:
    return StreamHandle(key, key, owner)


async def test_a_stream_and_a_principal_have_so_many_readers() -> None:
    config = Config(base_url="http://127.0.0.1:9/v1", max_readers_per_stream=2, max_readers_per_principal=3)
    readers = Readers(config)
    opened: list[Any] = [Closable() for _ in range(4)]
    for reader, key in zip(opened, "aab", strict=False):
        readers.reserve(handle(key))
        readers.add(reader, handle(key))
    for refused in (handle("a"), handle("c"), handle("a", "bob"), handle("a", "")):
        with pytest.raises(TooManyReaders):
            readers.reserve(refused)
    for allowed in (handle("c", "bob"), handle("c", "")):
        readers.reserve(allowed)
        readers.give_back(allowed)
    await readers.leave(opened[0])
    await readers.leave(opened[0])
    readers.reserve(handle("a"))
    readers.give_back(handle("a"))
    assert len(readers) == 2


async def test_anonymous_readers_are_counted_by_their_stream_alone() -> None:
    readers = Readers(Config(base_url="http://127.0.0.1:9/v1", max_readers_per_principal=1))
    for key in "abc":
        readers.reserve(handle(key, ""))
        readers.add(Closable(), handle(key, ""))


async def test_cutting_a_stream_closes_its_readers_and_no_others() -> None:
    readers = Readers(Config(base_url="http://127.0.0.1:9/v1"))
    opened: list[Any] = [Closable() for _ in range(3)]
    for reader, key in zip(opened, "aba", strict=True):
        readers.reserve(handle(key))
        readers.add(reader, handle(key))
    await readers.cut(handle("a"))
    assert [reader.closed for reader in opened] == [1, 0, 1]
    assert not await readers.wait_for_none(0)
    await readers.cut(handle("b"))
    assert await readers.wait_for_none(5)
    assert not readers._of_streams
    assert not readers._of_owners


async def test_one_reader_too_many_is_a_429_and_disturbs_nobody(create_app: CreateApp, serve: Serve) -> None:
    gate = asyncio.Event()
    app, _ = create_app(ScriptedUpstream([gate.wait]), max_readers_per_stream=1)
    client = await serve(app)
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    async with client.stream("GET", url) as response:
        assert response.status_code == 200
        refused = await client.get(url)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_readers")
        assert refused.headers["Retry-After"] == "5"
        assert (await client.get(url, headers=BOB)).status_code == 404
        plain = asyncio.ensure_future(client.post("/v1/chat/completions", json={**BODY, "stream": True}))
        await client.delete(url)
        text = b"".join([data async for data in response.aiter_raw()])
    assert (await read(text)).outcome == "stopped"
    gate.set()
    await plain
