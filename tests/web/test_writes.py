"""Clients that do not read what they asked for."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import Any

import httpx
import pytest

from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read, serve_app
from quart_openai_sse.web.writes import WriteWatch
from tests.conftest import ANN, QUESTION, CreateApp


class Task:
    """Says whether it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def done(self) -> bool:
        return self.cancelled

    def add_done_callback(self, function: Any) -> None:
        """Nothing follows."""


async def test_a_write_that_waits_is_cut_off_and_writes_that_follow_each_other_are_not() -> None:
    task: Any = Task()
    watch = WriteWatch(task, 60)
    for _ in range(50):  # a slow client, which takes one piece at a time
        watch.writes += 1
        watch._check()
        watch.writes += 1
        watch._check()
    for _ in range(50):  # a silent stream
        watch._check()
    watch.writes += 1
    for _ in range(4):  # the first look only notes that there is a write
        watch._check()
    assert not task.cancelled
    watch._check()
    assert task.cancelled
    watch.stop()


async def test_what_is_written_at_once_is_bounded(create_app: CreateApp) -> None:
    text = "x" * 300_000
    app, _ = create_app(ScriptedUpstream([chunk(text), finish()]), write_timeout=60)
    written: list[int] = []
    inner = app.asgi_app

    async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
        async def counting(message: Any) -> None:
            written.append(len(message.get("body", b"")))
            await send(message)

        await inner(scope, receive, counting)

    app.asgi_app = asgi_app  # type: ignore[method-assign]
    async with serve_app(app) as address, httpx.AsyncClient(base_url=f"http://{address}", headers=ANN) as client:
        response = await client.post("/v1/chat/completions", json={"messages": QUESTION, "stream": True})
    assert (await read(response.content)).text == text
    assert max(written) == 64 << 10


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/streams"])
async def test_a_client_that_does_not_read_is_cut_off(
    create_app: CreateApp, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quart_openai_sse")
    upstream = ScriptedUpstream([chunk("x" * 100_000)] * 200 + [finish()])
    app, ai = create_app(upstream, write_timeout=0.1, linger=0, max_bytes=1 << 26)
    async with serve_app(app) as address:
        loop = asyncio.get_running_loop()
        host, _, port = address.rpartition(":")
        with socket.socket() as client:
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(client, (host, int(port)))
            body = json.dumps({"model": "scripted", "messages": QUESTION, "stream": True}).encode()
            head = (
                f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-ann\r\nAccept: text/event-stream\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            relay = app.extensions["quart_openai_sse"][ai.name].engines.get()
            await loop.sock_sendall(client, head.encode() + body)
            async with asyncio.timeout(20):
                while not relay.readers:
                    await asyncio.sleep(0)
                while relay.readers or relay.streams:
                    await asyncio.sleep(0.01)
                received = bytearray()
                while data := await loop.sock_recv(client, 1 << 16):
                    received += data
    assert relay.memory.unread == 0
    assert b"[DONE]" not in received
    assert b"event: completed" not in received
    assert not received.endswith(b"0\r\n\r\n")  # a body that is cut off: RFC 9112, 8
    assert "has not accepted a write in time" in caplog.text
