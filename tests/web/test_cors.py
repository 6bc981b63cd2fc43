"""Pages of another origin, let in by quart-cors: what they may send, see, resume and stop; in Chromium, too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import async_playwright
from quart import Quart
from quart_cors import cors

from quart_openai_sse import EXPOSED_HEADERS, bearer_tokens, first_of, session_user
from quart_openai_sse.testing import ScriptedUpstream, refused, serve_app
from tests.auth.test_hooks import session_cookie
from tests.conftest import QUESTION, TOKENS, CreateApp, Serve

FRIEND = "https://friend.example"
BODY = {"messages": QUESTION}

EVERYBODY_SEES = {"cache-control", "content-language", "content-length", "content-type", "expires", "last-modified"}
"""The headers a page of another origin is shown anyway (Fetch, "CORS-safelisted response-header name")."""
NOT_FOR_PAGES = {"allow", "date", "etag", "server", "transfer-encoding", "www-authenticate"}
NOT_FOR_PAGES |= {"incremental", "x-accel-buffering"}


def let_in(app: Quart, origin: str, **options: Any) -> Quart:
    """As the documentation says."""
    return cors(
        app, allow_origin=[origin], expose_headers=EXPOSED_HEADERS, allow_methods=["GET", "POST", "DELETE"], **options
    )


async def test_a_preflight_needs_no_credentials_and_allows_what_the_client_sends(
    create_app: CreateApp, serve: Serve
) -> None:
    app, _ = create_app(ScriptedUpstream())
    client = await serve(let_in(app, FRIEND), headers={})
    asked = {
        "Origin": FRIEND,
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "authorization,last-event-id",
    }
    for path in ("/v1/chat/completions", "/v1/streams", "/v1/streams/" + "0" * 32, "/v1/client.js"):
        response = await client.options(path, headers=asked)
        assert response.status_code == 204, path
        assert response.headers["access-control-allow-origin"] == FRIEND
        assert set(response.headers["access-control-allow-headers"].split(", ")) == {"authorization", "last-event-id"}
        refused_ = await client.options(path, headers={**asked, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in refused_.headers


async def test_every_response_may_be_seen_and_its_headers_are_exposed(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream([refused(429, retry_after=1)], [refused(401)], "hello")
    app, _ = create_app(upstream, max_body=1000)
    client = await serve(let_in(app, FRIEND))
    ask = ("POST", "/v1/chat/completions")
    exchanges: list[tuple[str, str, Any, int]] = [
        (*ask, BODY, 429),
        (*ask, BODY, 502),
        (*ask, {**BODY, "stream": True}, 200),
        (*ask, BODY, 200),
        ("POST", "/v1/streams", BODY, 201),
        ("GET", "/v1/streams/" + "0" * 32, None, 404),
        ("GET", "/v1/nothing", None, 404),
        ("PUT", "/v1/streams", None, 405),
        ("GET", "/v1/models", None, 200),
        ("GET", "/v1/client.js", None, 200),
        (*ask, {**BODY, "user": "x" * 1000}, 413),
    ]
    seen = set()
    for method, path, body, status in exchanges:
        response = await client.request(method, path, json=body, headers={"Origin": FRIEND})
        assert (path, response.status_code) == (path, status)
        assert response.headers["access-control-allow-origin"] == FRIEND
        exposed = response.headers["access-control-expose-headers"].split(", ")
        assert {each.lower() for each in exposed} == {each.lower() for each in EXPOSED_HEADERS}
        seen |= {name for name in response.headers if name != "vary" and not name.startswith("access-control-")}
    assert seen - EVERYBODY_SEES - NOT_FOR_PAGES == {each.lower() for each in EXPOSED_HEADERS}


async def test_a_cookie_needs_the_origin_to_be_trusted_as_well(create_app: CreateApp, serve: Serve) -> None:
    for trusted, status in (([FRIEND], 201), ([], 403)):
        app, _ = create_app(ScriptedUpstream("hello"), auth=session_user(), trusted_origins=trusted)
        client = await serve(let_in(app, FRIEND, allow_credentials=True), headers=session_cookie(_user_id=42))
        response = await client.post("/v1/streams", json=BODY, headers={"Origin": FRIEND})
        assert response.status_code == status
        assert response.headers["access-control-allow-credentials"] == "true"


PAGE = """<!doctype html><title>a page elsewhere</title><script type="module">
    globalThis.ready = import("%s/v1/client.js");
</script>"""

FOLLOW = """async ([api, headers]) => {
    const { StreamClient } = await ready;
    const client = new StreamClient(`${api}/v1`, {
        headers,
        fetch: (url, init) => fetch(url, { ...init, credentials: "include" }),
    });
    const { url } = await client.start({ messages: [{ role: "user", content: "How far is the moon?" }] });
    const text = async (lastEventId) => {
        let text = "";
        for await (const { type, data } of client.follow(url, { lastEventId })) if (type === "delta") text += data.text;
        return text;
    };
    const whole = await text();
    const rest = await text("2");
    const fetched = await fetch(`${api}/v1/chat/completions`, {
        method: "POST",
        headers: { "Content-Type": "application/json", ...headers },
        credentials: "include",
        body: JSON.stringify({ stream: true, messages: [{ role: "user", content: "?" }] }),
    });
    const shown = fetched.headers.get("X-Stream-Id");
    await fetched.text();
    return { whole, rest, shown: /^[0-9a-f]{32}$/.test(shown) };
}"""

LISTEN = """async (api) => {
    const started = await fetch(`${api}/v1/streams`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        credentials: "include",
        body: JSON.stringify({ messages: [{ role: "user", content: "?" }] }),
    });
    const source = new EventSource(new URL((await started.json()).url, api), { withCredentials: true });
    let text = "";
    source.addEventListener("delta", (event) => (text += JSON.parse(event.data).text));
    await new Promise((done) => source.addEventListener("completed", done));
    source.close();
    return text;
}"""


@pytest.fixture
async def elsewhere() -> AsyncIterator[tuple[Quart, str]]:
    """An app with a page, and the origin at which it is served."""
    app = Quart("elsewhere")
    async with serve_app(app) as address:
        yield app, f"http://{address}"


@pytest.mark.browser
async def test_in_chromium_a_page_elsewhere_streams_resumes_and_sees_the_headers(
    create_app: CreateApp, elsewhere: tuple[Quart, str], chromium: str
) -> None:
    pages, origin = elsewhere
    api, _ = create_app(
        ScriptedUpstream(*["one two three"] * 4),
        auth=first_of(bearer_tokens(TOKENS), session_user()),
        trusted_origins=[origin],
    )
    async with serve_app(let_in(api, origin, allow_credentials=True)) as address, async_playwright() as playwright:
        there = f"http://{address}"
        pages.add_url_rule("/", view_func=lambda: PAGE % there)
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(origin)
        followed = await page.evaluate(FOLLOW, [there, {"Authorization": "Bearer token-ann"}])
        assert followed == {"whole": "one two three", "rest": " two three", "shown": True}
        name, _, value = session_cookie(_user_id=42)["Cookie"].partition("=")
        await context.add_cookies([{"name": name, "value": value, "url": there}])
        assert await page.evaluate(LISTEN, there) == "one two three"
        await browser.close()


@pytest.mark.browser
async def test_in_chromium_a_page_that_was_not_let_in_gets_nothing(
    create_app: CreateApp, elsewhere: tuple[Quart, str], chromium: str
) -> None:
    pages, origin = elsewhere
    upstream = ScriptedUpstream("secret")
    api, _ = create_app(upstream)
    async with serve_app(let_in(api, FRIEND)) as address, async_playwright() as playwright:
        pages.add_url_rule("/", view_func=lambda: "nothing")
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page()
        await page.goto(origin)
        with pytest.raises(Exception, match="Failed to fetch"):
            await page.evaluate(
                """api => fetch(`${api}/v1/chat/completions`, {
                    method: "POST", body: "{}",
                    headers: { "Content-Type": "application/json", Authorization: "Bearer token-ann" },
                })""",
                f"http://{address}",
            )
        await browser.close()
    assert upstream.requests == []
