"""What becomes of streams when a server of the page is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import uuid4

import httpx

from quart_openai_sse.protocol.sse import SSEDecoder
from tests.matrix.servers import TOKEN, Server, Site, begin, ready
from tests.matrix.upstream import HELD_AFTER

DRAIN = 4  # seconds, in place of the page's


async def check_drain(site: Site, name: str, upstream_client: str) -> dict[str, str]:
    """The problem, or "", by the name of the check."""
    server = await begin(site, name, upstream_client, drain=DRAIN)
    try:
        async with asyncio.timeout(60):
            await ready(server)
            await _drain(server, site.upstream)
    except Exception as error:
        return {"drain": f"{type(error).__name__}: {error}"}
    finally:
        await server.stop()
    return {"drain": ""}


async def _drain(server: Server, upstream: str) -> None:
    ends, stays = (f"sim-fast-held-{uuid4()}" for _ in range(2))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as client,
        aclosing(_stream(client, ends)) as ending,
        aclosing(_stream(client, stays)) as staying,
    ):
        await anext(ending)
        await anext(staying)
        server.process.terminate()
        while (await client.get("/ready")).status_code != 503:
            await asyncio.sleep(0.02)
        answer = await client.post("/chat/completions", json=_body("sim-fast"))
        _same(answer.status_code, 200)  # in the drain's grace, half of which has not passed
        while answer.status_code == 200:
            await asyncio.sleep(0.02)
            answer = await client.post("/chat/completions", json=_body("sim-fast"))
        _same(answer.json()["error"]["code"], "draining")
        for _ in HELD_AFTER:
            await client.post(f"{upstream}/release/{ends}")
        _same([data async for data in ending][-1], "[DONE]")
        _same('"server_shutdown"' in [data async for data in staying][-1], True)
    _same(await server.process.wait(), 0)


async def _stream(client: httpx.AsyncClient, model: str) -> AsyncGenerator[str, None]:
    decoder = SSEDecoder()
    async with client.stream("POST", "/chat/completions", json=_body(model)) as response:
        async for piece in response.aiter_bytes():
            for event in decoder.feed(piece):
                yield event.data


def _body(model: str) -> dict[str, object]:
    return {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}


def _same(found: object, expected: object) -> None:
    if found != expected:
        raise AssertionError(f"{found!r} is not {expected!r}")
