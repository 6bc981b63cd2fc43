"""Promise 4 and 7: readers in each other's company. Two at once, one that never reads, a stream of 200 MB;
`python -m tests.web.test_event_stream` prints what the slow reader costs."""

from __future__ import annotations

import asyncio
import resource
import sys

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quart import Quart

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read, serve_app
from tests.conftest import ANN, QUESTION, TOKENS, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}


async def test_a_plain_call_is_answered_while_kept_streams_fill_the_log(create_app: CreateApp, serve: Serve) -> None:
    full = asyncio.Event()
    upstream = ScriptedUpstream([chunk("x" * 3000), full.wait, finish()], [chunk("hi"), finish()])
    client = await serve(create_app(upstream, max_log_bytes=3400)[0])
    started = await client.post("/v1/streams", json=BODY)
    async with client.stream("GET", started.json()["url"]) as response:
        async for data in response.aiter_bytes():
            if b"xxx" in data:
                break
        plain = await client.post("/v1/chat/completions", json=BODY)
        assert (plain.status_code, (await read(plain.content)).text) == (200, "hi")
        full.set()


async def test_two_readers_one_from_the_middle_get_the_same_tail(create_app: CreateApp, serve: Serve) -> None:
    gate = asyncio.Event()
    script = [chunk("one"), chunk(" two"), gate.wait, chunk(" three"), chunk(" four"), finish()]
    client = await serve(create_app(ScriptedUpstream(script))[0])
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    early = asyncio.ensure_future(client.get(url))
    async with client.stream("GET", url, headers={"Last-Event-ID": "1"}) as response:
        body = response.aiter_raw()
        first = b""
        while b"two" not in first:
            first += await anext(body)
        gate.set()
        late = await read(first + b"".join([data async for data in body]))
    whole = await read((await early).content)
    assert whole.text == "one two three four"
    assert late.events == whole.events[1:]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 3000), max_size=8), upstream_cuts=st.lists(st.integers(1, 60), min_size=1))
def test_any_cuts_on_either_side_lose_and_repeat_nothing(cuts: list[int], upstream_cuts: list[int]) -> None:
    """The upstream's bytes come in any pieces, and the client's connection breaks after any number of bytes."""
    text = "Ein Märchen — 昔々 🌊 “quoted” \\ and \n new lines, " * 3

    async def run() -> None:
        wire = b"".join(chunk(text[at : at + 7]) for at in range(0, len(text), 7)) + finish()
        pieces, sizes = [], list(upstream_cuts)
        while wire:
            size = sizes[len(pieces) % len(sizes)]
            pieces.append(wire[:size])
            wire = wire[size:]
        app = Quart("cuts")
        upstream = ScriptedUpstream(pieces)
        QuartOpenAISSE(app, auth=bearer_tokens(TOKENS), base_url="http://127.0.0.1:9", upstream=lambda _: upstream)
        async with app.test_app() as running:
            client = running.test_client()
            url = (await (await client.post("/v1/streams", json=BODY, headers=ANN)).get_json())["url"]
            got, last = [], ""
            for cut in [*cuts, None]:
                headers = {**ANN, **({"Last-Event-ID": last} if last else {})}
                response = await client.get(url, headers=headers)
                if response.status_code == 204:
                    break
                seen = await read((await response.get_data())[:cut])
                got += seen.events
                last = seen.last_event_id or last
            whole = await read(await (await client.get(url, headers=ANN)).get_data())
            assert got == whole.events
            assert whole.text == text

    asyncio.run(run())


async def flood(megabytes: int, *, slow: bool) -> tuple[int, int]:
    """Streams *megabytes* on OpenAI's route to a reader that reads, next to one that does not if *slow*.

    Gives the bytes that were read, and by how many kilobytes the peak of memory grew.
    """
    event = chunk("x" * 10_000)
    script = [event] * (megabytes * 100) + [finish()]
    app = Quart("flood")
    ai = QuartOpenAISSE(
        app, auth=bearer_tokens(TOKENS), base_url="http://127.0.0.1:9", upstream=lambda _: ScriptedUpstream(script)
    )
    async with serve_app(app) as address, httpx.AsyncClient(headers=ANN, timeout=60) as client:
        host, _, port = address.rpartition(":")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if slow:
            import json

            _, writer = await asyncio.open_connection(host, int(port), limit=1024)
            body = json.dumps(BODY).encode()
            writer.write(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: {ANN['Authorization']}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
        count = 0
        async with client.stream("POST", f"http://{address}/v1/chat/completions", json=BODY) as response:
            async for data in response.aiter_raw():
                count += len(data)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if slow:
            relay = app.extensions["quart_openai_sse"][ai.name].engines.current()
            assert len(relay.streams) == 1  # it waits, and is not failed
            writer.transport.abort()
            while relay.streams:
                await asyncio.sleep(0)
    return count, grown


@pytest.mark.parametrize("slow", [False, True])
async def test_a_long_stream_and_a_reader_that_never_reads_cost_bounded_memory(slow: bool) -> None:
    count, grown = await flood(40, slow=slow)
    assert count > 40_000_000
    assert grown < 20_000


async def test_a_reader_that_never_reads_slows_nobody_on_a_stream_they_share(
    create_app: CreateApp, serve: Serve
) -> None:
    script = [chunk("x" * 10_000) for _ in range(1000)] + [finish()]
    client = await serve(create_app(ScriptedUpstream(script))[0])
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port, limit=1024)
    writer.write(f"GET {url} HTTP/1.1\r\nHost: x\r\nAuthorization: {ANN['Authorization']}\r\n\r\n".encode())
    seen = await read((await client.get(url)).content)
    assert (len(seen.text), seen.outcome) == (10_000_000, "completed")
    writer.transport.abort()


async def main() -> None:
    """Prints the figures."""
    for slow in (False, True):
        count, grown = await flood(200, slow=slow)
        beside = "beside a reader that never reads" if slow else "alone"
        sys.stdout.write(f"a stream of {count / 1e6:.0f} MB {beside}: peak memory grew by {grown / 1000:.1f} MB\n")


if __name__ == "__main__":
    asyncio.run(main())
