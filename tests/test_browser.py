"""The browser client and EventSource, in Chromium: what a page gets of a stream, whatever the network does."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from playwright.async_api import Page

from quart_openai_sse.simulator import answer
from tests.browser import LONG, PATIENCE, NewPage, NewSite, asked, last_event_ids, log_in
from tests.protocol.test_sse import CASES, Decoded, decode

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


# EventSource --------------------------------------------------------------------------------------------------------

EVENT_SOURCE = """url => new Promise((resolve) => {
    const events = [];
    const source = new EventSource(url);
    for (const type of ["delta", "completed", "failed", "stopped", "message"])
        source.addEventListener(type, ({ data, lastEventId }) => events.push([type, data, lastEventId]));
    source.addEventListener("error", () => source.readyState === EventSource.CLOSED && resolve(events));
})"""


async def test_a_plain_event_source_survives_cuts_and_stops_at_the_end(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page(failing=True)
    await log_in(page, site, "/login")
    body = asked("Tell me more.", "sim-length-300-rate-600")
    started = await start(page, body)
    site.proxy.cuts = [4000, 1500, 2001, 4007]
    events = await page.evaluate(EVENT_SOURCE, started["url"])

    text = "".join(await page.evaluate("events => events.map(([, data]) => JSON.parse(data).text ?? '')", events))
    assert text == answer(body)
    ids = [last_event_id for _, _, last_event_id in events]
    assert ids == [*map(str, range(2, 302)), "end"]  # 1 is the role
    assert [kind for kind, _, _ in events] == ["delta"] * 300 + ["completed"]

    # Four cuts, the rest, and one request more, which is told that there is nothing more.
    resumed = last_event_ids(site.proxy.reads)
    assert resumed[0] == ""
    assert len(resumed) == 6
    assert resumed[-1] == "end"
    assert resumed[1:-1] == sorted(resumed[1:-1], key=int)
    assert (
        await page.evaluate(
            "url => fetch(url, { headers: { 'Last-Event-ID': 'end' } }).then(r => r.status)", url(started)
        )
        == 204
    )
    assert len(site.proxy.reads) == 7


# client.js ----------------------------------------------------------------------------------------------------------

IMPORT = "const { StreamClient, StreamError, SSEDecoder } = await import('/v1/client.js');"

FOLLOW = """
async function whole(client, url, options) {
    const seen = { text: "", ids: [], types: [], opened: 0, reconnected: 0, last: null };
    const onopen = () => seen.opened++, onreconnect = () => seen.reconnected++;
    for await (const { type, data, id } of client.follow(url, { onopen, onreconnect, ...options })) {
        seen.ids.push(id), seen.types.push(type), seen.last = data;
        if (type === "delta") seen.text += data.text;
    }
    return seen;
}
async function error(promise) {
    try { await promise; return "no error"; }
    catch (e) {
        if (!(e instanceof StreamError)) return `another error: ${e}`;
        return [e.name, e.status, e.code, e.userMessage, e.message.length > 0];
    }
}
"""


async def run(page: Page, script: str, argument: Any = None) -> Any:
    """Runs *script*, the body of an async function of *argument*, in the page."""
    return await page.evaluate(f"async (argument) => {{ {IMPORT} {FOLLOW} {script} }}", argument)


async def start(page: Page, body: dict[str, Any]) -> dict[str, Any]:
    """Starts a stream by the client."""
    started: dict[str, Any] = await run(page, "return new StreamClient('/v1').start(argument);", body)
    return started


def url(started: dict[str, Any]) -> str:
    """A stream's address."""
    return str(started["url"])


async def test_the_client_follows_through_any_cut(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page(failing=True)
    await log_in(page, site, "/login")
    body = asked("Tell me more.", "sim-length-250-rate-500")
    chance = random.Random(7)
    site.proxy.cuts = cuts = [0, 8, 33, 40, 450, *(chance.randrange(900, 6000) for _ in range(80))]
    seen = await run(
        page,
        """
        const client = new StreamClient();
        const { url } = await client.start(argument);
        const late = client.start(argument).then(({ url }) => whole(client, url));
        return Promise.all([whole(client, url), whole(client, url), whole(client, url), whole(client, url), late]);
        """,
        body,
    )
    for each in seen:
        assert each["text"] == answer(body)
        assert each["ids"] == [*map(str, range(2, 252)), "end"]  # 1 is the role
        assert each["types"] == ["delta"] * 250 + ["completed"]
        assert each["last"]["finish_reason"] == "stop"
    assert sum(each["reconnected"] for each in seen) > 10
    assert cuts


async def test_the_client_says_when_it_connects_and_goes_on_from_where_it_was(
    new_site: NewSite, new_page: NewPage
) -> None:
    site, page = await new_site(), await new_page()
    await log_in(page, site, "/login")
    upstream = site.gated(LONG, 0)
    started = await start(page, asked("Tell me more."))
    seen = await run(page, "return whole(new StreamClient(), argument)", started["url"])
    assert (seen["text"], seen["opened"], seen["reconnected"]) == (upstream.text, 1, 0)
    rest = await run(page, "return whole(new StreamClient(), argument, { lastEventId: '240' })", started["url"])
    assert rest["ids"] == ["241", "end"]
    nothing = await run(page, "return whole(new StreamClient(), argument, { lastEventId: 'end' })", started["url"])
    assert (nothing["ids"], nothing["opened"]) == ([], 1)


async def test_the_client_lists_and_stops_what_runs(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    await log_in(page, site, "/login")
    upstream = site.gated(LONG, 1)
    started = await start(page, {**asked("Tell me more."), "thread": "ours"})
    running, others = await run(
        page,
        """const client = new StreamClient("/v1/");
        return [await client.running({ thread: "ours" }), await client.running({ thread: "theirs" })];""",
    )
    assert [(each["id"], each["url"], each["thread"]) for each in running] == [(started["id"], started["url"], "ours")]
    assert others == []
    seen, left = await run(
        page,
        """const client = new StreamClient();
        const seen = whole(client, argument);
        await client.stop(argument);
        const ended = await seen;
        await client.stop(argument);
        return [ended, await client.running()];""",
        started["url"],
    )
    assert (seen["types"][-1], seen["last"]) == ("stopped", {"reason": "stopped by its owner"})
    assert upstream.so_far[0].startswith(seen["text"])
    assert left == []


async def test_an_idempotency_key_finds_the_stream_that_was_started(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    await log_in(page, site, "/login")
    one, two = await run(
        page,
        """const client = new StreamClient();
        const options = { idempotencyKey: crypto.randomUUID() };
        return [await client.start(argument, options), await client.start(argument, options)];""",
        asked("Tell me more."),
    )
    assert one == two
    assert len(site.simulator.counters.requests) == 1


async def test_leaving_the_loop_closes_the_connection_and_lets_the_stream_run(
    new_site: NewSite, new_page: NewPage
) -> None:
    site, page = await new_site(), await new_page()
    await log_in(page, site, "/login")
    upstream = site.gated(LONG, 1)
    started = await start(page, asked("Tell me more."))
    for leave in ("break", "throw new Error('enough')", "abort.abort(new Error('enough'))"):
        site.proxy.left.clear()
        how = await run(
            page,
            f"""const abort = new AbortController();
            try {{
                for await (const _ of new StreamClient().follow(argument, {{ signal: abort.signal }})) {leave};
                return "left";
            }} catch (error) {{ return error.message; }}""",
            started["url"],
        )
        assert how == ("left" if leave == "break" else "enough")
        async with asyncio.timeout(PATIENCE):
            await site.proxy.left.wait()
    assert site.proxy.reading == set()
    assert upstream.running == 1
    upstream.gates[0].set()
    seen = await run(page, "return whole(new StreamClient(), argument)", started["url"])
    assert (seen["text"], seen["types"][-1]) == (LONG, "completed")


async def test_a_signal_ends_the_wait_for_a_server_that_is_away(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page(failing=True)
    await log_in(page, site, "/login")
    site.gated(LONG, 1)
    started = await start(page, asked("Tell me more."))
    site.proxy.cuts = [0] * 100
    await run(
        page,
        """const abort = window.abort = new AbortController();
        window.waiting = new Promise((onreconnect) => {
            window.ended = whole(new StreamClient(), argument, { signal: abort.signal, onreconnect }).catch(String);
        });""",
        started["url"],
    )
    await page.evaluate("window.waiting")
    assert await page.evaluate("(abort.abort('enough'), ended)") == "enough"


async def test_a_definite_answer_is_an_error_with_a_sentence(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(OPENAI_SSE_RETENTION=0), await new_page(failing=True)
    await log_in(page, site, "/login")
    over = await start(page, asked("Tell me more."))
    await run(page, "return whole(new StreamClient(), argument).catch(String)", over["url"])
    site.gated(LONG, 1)
    live = await start(page, asked("Tell me more."))
    errors = await run(
        page,
        """const client = new StreamClient();
        return [
            await error(whole(client, argument.over)),
            await error(whole(client, `streams/${"0".repeat(32)}`)),
            await error(whole(client, argument.live, { lastEventId: "99999" })),
            await error(client.start({ messages: [] })),
            await error(client.stop("streams/unknown")),
            await error(whole(client, "/login")),
            await error(new StreamClient("/nowhere").running()),
        ];""",
        {"over": over["url"], "live": live["url"]},
    )
    assert errors == [
        ["StreamError", 410, "stream_expired", "This answer is no longer available. Please ask again.", True],
        ["StreamError", 404, "stream_not_found", "This answer no longer exists.", True],
        [
            "StreamError",
            400,
            "invalid_last_event_id",
            "This answer can't be resumed from this point. Please reload the page.",
            True,
        ],
        ["StreamError", 400, "invalid_request", "This request could not be understood.", True],
        ["StreamError", 404, "stream_not_found", "This answer no longer exists.", True],
        ["StreamError", 200, "not_an_event_stream", "Something went wrong. Please try again.", True],
        ["StreamError", 404, "", "Something went wrong. Please try again.", True],
    ]
    assert len(site.proxy.reads) == 4

    await page.context.clear_cookies()
    unknown = await run(
        page,
        """const client = new StreamClient();
        return [await error(client.start({})), await error(client.running()), await error(whole(client, argument))];""",
        live["url"],
    )
    assert unknown == [["StreamError", 401, "invalid_api_key", "Please log in.", True]] * 3

    await page.context.set_offline(True)
    away = await run(page, "return error(new StreamClient().start({}))")
    assert away == ["StreamError", 0, "connection_failed", "The server could not be reached. Please try again.", True]


async def test_the_client_sends_the_headers_it_is_given(
    new_site: NewSite, new_page: NewPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMPLE_TOKEN", "token")
    site, page = await new_site(), await new_page(failing=True)
    await page.goto(f"{site.url}/login")
    site.proxy.cuts = [1200]
    seen, asked_for = await run(
        page,
        """let asked = 0;
        const headers = async () => (asked++, { Authorization: "Bearer token" });
        const client = new StreamClient("/v1", { headers });
        const { url } = await client.start(argument);
        const seen = await whole(new StreamClient("/v1", { headers }), url);
        return [seen, asked];""",
        asked("Tell me more."),
    )
    assert seen["text"] == answer(asked("Tell me more."))
    assert (seen["opened"], seen["reconnected"], asked_for) == (2, 1, 3)


DECODE = """
return argument.map((pieces) => {
    const decoder = new SSEDecoder();
    const events = [];
    for (const piece of pieces) events.push(...decoder.feed(Uint8Array.from(piece)));
    return [events.map(({ type, data, id }) => [data, type, id]), decoder.lastEventId, decoder.retry ?? null];
});
"""


async def test_the_clients_decoder_follows_the_standard_whole_and_byte_by_byte(
    new_site: NewSite, new_page: NewPage
) -> None:
    site, page = await new_site(), await new_page()
    await page.goto(f"{site.url}/login")
    wires = [wire for wire, _ in CASES.values()]
    expected = {name: seen(decoded) for name, (_, decoded) in CASES.items()}
    for cut in ([[list(wire)] for wire in wires], [[[byte] for byte in wire] for wire in wires]):
        decoded = await run(page, DECODE, cut)
        assert dict(zip(CASES, decoded, strict=True)) == expected


async def test_the_clients_decoder_gives_the_same_as_ours_for_any_cut(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    await page.goto(f"{site.url}/login")
    chance = random.Random(11)
    lines = [
        "data: x",
        "data",
        "data:é🌊",
        "id: 7",
        "id",
        "id: \0",
        "event: e",
        "retry: 5",
        ": c",
        "\ufeff",
        "x",
        "",
        "",
    ]
    wires = [
        "".join(chance.choice(lines) + chance.choice(["\n", "\r", "\r\n"]) for _ in range(20)).encode()
        for _ in range(300)
    ]
    ours = [seen(decode(wire)) for wire in wires]
    assert sum(len(events) for events, _, _ in ours) > 400
    assert await run(page, DECODE, [[list(wire)] for wire in wires]) == ours
    assert await run(page, DECODE, [[[byte] for byte in wire] for wire in wires]) == ours
    assert await run(page, DECODE, [random_cut(chance, wire) for wire in wires]) == ours


def seen(decoded: Decoded) -> list[Any]:
    """What our own decoder made of it, as the page tells it."""
    events = [[event.data, event.event, event.id] for event in decoded.events]
    return [events, decoded.last_event_id, decoded.retry]


def random_cut(chance: random.Random, wire: bytes) -> list[list[int]]:
    """*wire* in pieces of up to 6 bytes."""
    pieces = []
    while wire:
        size = chance.randint(1, 6)
        pieces.append(list(wire[:size]))
        wire = wire[size:]
    return pieces
