"""Promise 3: leaving cancels in every window. Read off the simulator's counters; `python -m tests.test_cancellation`
prints how long each took."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from quart import Quart

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.observers import StreamEvent
from quart_openai_sse.simulator import Simulator, serve_simulator
from quart_openai_sse.testing import ScriptedUpstream, chunk, serve_app
from tests.conftest import ANN, QUESTION, TOKENS


@dataclass(frozen=True)
class Window:
    """When the client leaves: a model that makes the window wide, and what has come of the answer by then."""

    model: str
    stream: bool = True
    route: str = "/v1/chat/completions"
    seen: bytes | None = None
    """What the client waits for before it leaves; `None`: it leaves when the upstream has the request."""


WINDOWS = {
    "before the upstream's headers": Window("sim-head-30"),
    "before the first token": Window("sim-delay-30"),
    "after the 200, before the first token": Window("sim-delay-30", seen=b":"),
    "mid-stream": Window("sim-long-rate-50-delay-0", seen=b'"content":"'),
    "mid-stream, without a pause": Window("sim-length-100000-rate-0-delay-0", seen=b'"content":"'),
    "in an answer in one piece": Window("sim-long-rate-10", stream=False),
    "in an app's model": Window("agent", seen=b'"content":"'),
    "in an app's model, before it says anything": Window("silent agent"),
    "in an app's model, in one piece": Window("silent agent", stream=False),
    "on /streams with no linger": Window("sim-long-rate-50-delay-0", route="/v1/streams", seen=b"delta"),
}


async def leave_in(window: Window, simulator: Simulator) -> tuple[float, list[StreamEvent]]:
    """Leaves in *window*; the seconds until the upstream saw it, and what observers saw."""
    app = Quart(__name__)
    ai = QuartOpenAISSE(
        app,
        auth=bearer_tokens(TOKENS),
        base_url=simulator.base_url,
        linger=0,
        commit_after=0.05 if window.seen == b":" else 30,
        keepalive=0.05,
    )
    over, events = asyncio.Event(), []

    @ai.observe
    def observe(event: StreamEvent) -> None:
        events.append(event)
        if event.kind == "ended":
            over.set()

    @ai.model("agent")
    async def agent(chat):
        async for each in chat.call("sim-long-rate-50-delay-0", chat.messages):
            yield each

    @ai.model("silent agent")
    async def silent_agent(chat):
        yield (await chat.call("sim-delay-30", chat.messages))["content"]

    async with serve_app(app) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await _post(writer, window)
        if window.seen is None:
            await simulator.counters.until(lambda: simulator.counters.totals["running"])
        else:
            data = b""
            while window.seen not in data.partition(b"\r\n\r\n")[2]:
                data += await reader.read(1 << 16)
        writer.transport.abort()
        left = time.monotonic()
        exchange = await simulator.ended(1)
        took = time.monotonic() - left
        assert exchange.outcome == "closed_by_peer"
        await over.wait()
        await ai.drain(1, app=app)
        relay = ai._state(app)._relays.get(asyncio.get_running_loop())
        assert relay is None or not (relay._live or relay._readers or relay._per_principal)
    return took, events


async def _post(writer: asyncio.StreamWriter, window: Window) -> None:
    body = json.dumps({"model": window.model, "messages": QUESTION, "stream": window.stream}).encode()
    writer.write(
        f"POST {window.route} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {ANN['Authorization']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nAccept: text/event-stream\r\n\r\n".encode()
        + body
    )
    await writer.drain()


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
async def test_leaving_closes_the_upstream(window: Window, simulator: Simulator) -> None:
    _, events = await leave_in(window, simulator)
    assert [event.kind for event in events][-1] == "ended"
    record = events[-1].record
    assert (record.outcome, record.reason) == ("stopped", "client_left")


async def test_leaving_while_the_upstream_is_being_connected_to_sends_it_nothing() -> None:
    """A listener that accepts nothing: the request never leaves, and the stream is over at once."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [await _connect(full) for _ in range(4)]
        app = Quart(__name__)
        base_url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        ai = QuartOpenAISSE(app, auth=bearer_tokens(TOKENS), base_url=base_url, connect_timeout=0.5)
        kinds: asyncio.Queue[StreamEvent] = asyncio.Queue()
        ai.observe(kinds.put_nowait)
        async with serve_app(app) as address:
            host, _, port = address.rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            await _post(writer, Window("m"))
            assert (await kinds.get()).kind == "started"
            writer.transport.abort()
            ended = await kinds.get()
        assert (ended.kind, ended.record.reason) == ("ended", "client_left")
        for filler in fillers:
            filler.close()


async def _connect(listener: socket.socket) -> socket.socket:
    filler = socket.socket()
    filler.setblocking(False)
    filler.connect_ex(listener.getsockname())
    return filler


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
    ai.observe(lambda event: over.put_nowait(event) if event.kind == "ended" else None)
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
            relay = ai._state(app).running_relays()
            while relay and (relay[0]._live or relay[0]._readers):
                await asyncio.sleep(0)
            await simulator.counters.until(lambda: not simulator.counters.totals["running"])
            assert not relay or not relay[0]._per_principal


async def main() -> None:
    """Prints the table."""
    write: Callable[[str], object] = sys.stdout.write
    for name, window in WINDOWS.items():
        async with serve_simulator(first_token_delay=0, tokens_per_second=0) as simulator:
            measured: Awaitable[tuple[float, list[StreamEvent]]] = leave_in(window, simulator)
            took, events = await measured
            record = events[-1].record
        write(f"{name:45} upstream closed after {took * 1000:6.1f} ms   {record.outcome}, {record.reason}\n")


if __name__ == "__main__":
    asyncio.run(main())
