"""The browser client in silence: in Chromium, in which the test is what lets time pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from quart_openai_sse.testing import ScriptedUpstream, serve_app
from tests.browser import NewPage
from tests.conftest import CreateApp

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

Run = Callable[..., Awaitable[Any]]

TIME = """
const { StreamClient } = await import("/v1/client.js");
const timers = new Map();
let now = Date.now(), numbers = 0;
Date.now = () => now;
globalThis.setTimeout = (done, ms = 0) => (timers.set(++numbers, { due: now + ms, done }), numbers);
globalThis.clearTimeout = (number) => timers.delete(number);
const turn = () => new Promise((done) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => (port1.close(), done());
    port2.postMessage(null);
});
function fire(until) {
    const [number, timer] = [...timers].sort(([, a], [, b]) => a.due - b.due)[0] ?? [];
    if (!timer || timer.due > until) return false;
    timers.delete(number);
    now = Math.max(now, timer.due);
    timer.done();
    return true;
}
async function pass(ms) { // the page is awake
    const end = now + ms;
    while (fire(end)) await turn();
    now = end;
    await turn();
}
function sleep(ms) { // what was due meanwhile comes late, all of it at once, and before anything else
    now += ms;
    const due = [...timers].filter(([, timer]) => timer.due <= now);
    for (const [number, { done }] of due) timers.delete(number), done();
}
const heads = [], seen = [], reconnected = [], streams = [];
const send = (text) => streams.at(-1).enqueue(new TextEncoder().encode(text));
const event = (id) => `id: ${id}\\nevent: delta\\ndata: {"text": "${id}"}\\n\\n`;
async function fetch(url, { headers, signal }) {
    heads.push(headers.get("Last-Event-ID"));
    const body = new ReadableStream({ start: (controller) => streams.push(controller) });
    const stream = streams.at(-1);
    signal.addEventListener("abort", () => stream.error(signal.reason));
    return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
}
async function follow(options, slow = () => {}) {
    const client = new StreamClient("/api", { fetch, ...options });
    const onreconnect = ({ error }) => reconnected.push(error.message);
    const read = async () => {
        for await (const { id } of client.follow("streams/1", { onreconnect })) seen.push(id), await slow();
    };
    read();
    await turn();
}
"""


@pytest_asyncio.fixture(loop_scope="session")
async def run(create_app: CreateApp, stack: AsyncExitStack, new_page: NewPage) -> Run:
    """Runs the body of an async function of *argument* in a page whose time is `TIME`'s."""
    page = await new_page()
    address = await stack.enter_async_context(serve_app(create_app(ScriptedUpstream())[0]))
    await page.goto(f"http://{address}/v1/health")

    async def run(script: str, argument: Any = None) -> Any:
        return await page.evaluate(f"async (argument) => {{ {TIME} {script} }}", argument)

    return run


LOST = "The connection was silent for too long."


@pytest.mark.parametrize(("options", "limit"), [({}, 35_000), ({"silence": 90_000}, 90_000), ({"silence": 5000}, 5000)])
async def test_a_silent_connection_is_lost_and_the_stream_resumed(
    run: Run, options: dict[str, Any], limit: int
) -> None:
    before, after, heads, seen = await run(
        """
        await follow(argument.options);
        for (const bytes of [event(2), ": comment\\n\\n", event(3)]) { // any byte is a sign of life
            await pass(argument.limit - 1);
            send(bytes);
            await turn();
        }
        await pass(argument.limit - 1);
        const before = [...reconnected];
        await pass(1);
        const after = [...reconnected];
        await pass(1000); // the delay before the second attempt
        send(event(4));
        await turn();
        return [before, after, heads.slice(0, 2), seen];
        """,
        {"options": options, "limit": limit},
    )
    assert (before, after, heads, seen) == ([], [LOST], [None, "3"], ["2", "3", "4"])


async def test_a_request_without_a_response_is_lost_too(run: Run) -> None:
    script = """
        const never = (url, { signal }) => new Promise(() => heads.push(signal)); // and which does not heed the signal
        await follow({ fetch: never });
        await pass(34_999);
        const before = [reconnected.length, heads[0].aborted];
        await pass(1);
        return [before, [reconnected.length, heads[0].aborted]];
    """
    assert await run(script) == [[0, False], [1, True]]


@pytest.mark.parametrize("silence", ["0", "Infinity"])
async def test_silence_may_have_no_limit(run: Run, silence: str) -> None:
    script = f"await follow({{ silence: {silence} }}); await pass(1e9); return [reconnected, timers.size];"
    assert await run(script) == [[], 0]


async def test_a_page_that_slept_reads_what_has_arrived_before_it_takes_a_connection_for_lost(run: Run) -> None:
    script = """
        await follow();
        send(event(2));
        await turn();
        for (const asleep of [35_000, 60_000, 3_600_000]) {
            sleep(asleep);
            send(": comment\\n\\n"); // the network's task is the next after the timers'
            await turn();
        }
        await pass(34_000); // the first timer, on time, and the machine sleeps before the second
        sleep(600_000);
        sleep(1);
        send(event(3));
        await turn();
        const lively = [...reconnected];
        sleep(600_000);
        await pass(1000);
        return [lively, reconnected, seen];
    """
    assert await run(script) == [[], [LOST], ["2", "3"]]


async def test_a_hidden_page_whose_timers_are_all_late_finds_a_dead_connection_in_the_end(run: Run) -> None:
    script = """
        await follow();
        for (let minutes = 0; minutes < 4; minutes++) { sleep(60_000); await turn(); }
        return reconnected;
    """
    assert await run(script) == [LOST]


async def test_a_page_that_is_slow_to_read_has_no_silent_connection(run: Run) -> None:
    script = """
        let goOn;
        await follow({}, () => new Promise((done) => (goOn = done)));
        send(event(2) + event(3));
        await turn();
        await pass(600_000);
        goOn();
        await turn();
        await pass(600_000);
        goOn();
        await turn();
        send(event(4));
        await turn();
        return [reconnected, seen];
    """
    assert await run(script) == [[], ["2", "3", "4"]]
