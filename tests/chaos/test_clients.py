"""Promise 3: leaving cancels in every window; and no other habit of a client keeps anything. The table of clients."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from quart import Quart

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.observers import StreamEvent
from quart_openai_sse.simulator import serve_simulator
from quart_openai_sse.testing import ScriptedUpstream, chunk, serve_app
from tests.chaos import clients
from tests.chaos.clients import CLIENTS, Client
from tests.conftest import ANN, QUESTION, TOKENS


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
async def test_what_becomes_of_a_clients_stream(client: Client) -> None:
    seen = await clients.visit(client, patience=20)
    assert seen.wrong == []
    if client.record == clients.NOTHING:
        assert seen.requests == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/streams"])
async def test_leaving_between_the_view_and_the_body_is_leaving(path: str) -> None:
    """The body's generator never starts then, and its `finally` never runs."""
    app = Quart(__name__)
    forever = asyncio.Event()
    upstream = ScriptedUpstream([chunk("hi"), forever.wait])
    ai = QuartOpenAISSE(
        app, auth=bearer_tokens(TOKENS), base_url="http://127.0.0.1:9", upstream=lambda _: upstream, linger=0
    )
    over: asyncio.Queue[StreamEvent] = asyncio.Queue()

    @ai.observe
    async def note(event: StreamEvent) -> None:
        if event.kind == "ended":
            await over.put(event)

    left = asyncio.Event()
    body = json.dumps({"model": "m", "messages": QUESTION, "stream": True}).encode()
    messages = [{"type": "http.request", "body": body}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        assert message["type"] == "http.response.start"
        left.set()
        await forever.wait()

    names = {"authorization": ANN["Authorization"], "content-type": "application/json", "accept": "text/event-stream"}
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in names.items()],
    }
    await app(scope, receive, send)
    assert (await over.get()).record.reason == "client_left"
    assert upstream.cancelled == 1


async def test_a_client_that_left_at_whatever_moment_leaks_nothing() -> None:
    """Many leave; afterwards nothing of them is left."""
    async with serve_simulator(first_token_delay=0, tokens_per_second=0) as simulator:
        app = Quart(__name__)
        ai = QuartOpenAISSE(app, auth=bearer_tokens(TOKENS), base_url=simulator.base_url, max_streams_per_principal=500)
        async with serve_app(app) as address, httpx.AsyncClient(base_url=f"http://{address}", headers=ANN) as client:

            async def leave_after(turns: int) -> None:
                body = {"model": "sim-long", "messages": QUESTION, "stream": True}
                asking = asyncio.ensure_future(client.post("/v1/chat/completions", json=body))
                for _ in range(turns):
                    await asyncio.sleep(0)
                asking.cancel()
                await asyncio.wait({asking})

            await asyncio.gather(*(leave_after(turns * 7) for turns in range(60)))
            relay = app.extensions["quart_openai_sse"][ai.name].engines.current()
            while relay and (relay.streams or relay.readers):
                await asyncio.sleep(0)
            await simulator.counters.until(lambda: not simulator.counters.totals["running"])
            assert not relay or not relay.admission.slots.taken
