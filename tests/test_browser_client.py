"""The browser client behind proxies, and with headers of the page's own: in Chromium."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Page
from quart import Quart, request

from quart_openai_sse.testing import ScriptedUpstream, serve_app
from tests.browser import NewPage
from tests.conftest import CreateApp

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

STREAM = (
    b'id: 2\nevent: delta\ndata: {"text": "Hello"}\n\nid: end\nevent: completed\ndata: {"finish_reason": "stop"}\n\n'
)
EVENTS = {"Content-Type": "text/event-stream"}
HTML = {"Content-Type": "text/html"}
Answer = tuple[bytes, int, dict[str, str]]


@dataclass
class Web:
    """A site with the client, another origin, and what both were asked for."""

    page: Page
    url: str = ""
    elsewhere: str = ""
    answers: list[Answer] = field(default_factory=list)
    """The site's next responses below `/api`."""
    heads: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Of each request below `/api`: where it came to, its method and its headers."""

    async def run(self, script: str, argument: Any = None) -> Any:
        """Runs *script*, the body of an async function of *argument*, in the page."""
        return await self.page.evaluate(f"async (argument) => {{ {COMMON} {script} }}", argument)


COMMON = """
const { StreamClient, StreamError } = await import("/v1/client.js");
async function whole(client, url, options) {
    const seen = { text: "", reconnections: [] };
    const onreconnect = ({ delay, error }) =>
        seen.reconnections.push([error.message, error.cause?.code, error.cause?.userMessage, delay]);
    for await (const { type, data } of client.follow(url, { onreconnect, ...options }))
        if (type === "delta") seen.text += data.text;
    return seen;
}
async function thrown(promise) {
    try { await promise; } catch (error) { return error; }
}
async function refused(promise) {
    const error = await thrown(promise);
    return error instanceof StreamError
        ? [error.status, error.code, error.userMessage, error.retryAfter] : `another error: ${error}`;
}
"""


def app_for(web: Web, app: Quart, name: str) -> Quart:
    """Adds the routes below `/api`, and a page. A page of another origin may ask for anything, with its cookies too."""

    @app.route("/api/<path:path>", methods=["GET", "POST", "DELETE"])
    async def api(path: str) -> Answer:
        web.heads.append((name, request.method, dict(request.headers)))
        return web.answers.pop(0)

    @app.get("/")
    async def page() -> Any:
        return "<!doctype html><link rel=icon href=data:,>", {**HTML, "Set-Cookie": "session=secret; Path=/"}

    @app.after_request
    async def allow(response: Any) -> Any:
        if "Origin" in request.headers:
            response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
            response.headers["Access-Control-Allow-Credentials"] = "true"
            response.headers["Access-Control-Allow-Headers"] = "authorization, x-token, last-event-id, content-type"
            response.headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE"
        return response

    return app


@pytest_asyncio.fixture(loop_scope="session")
async def web(create_app: CreateApp, stack: AsyncExitStack, new_page: NewPage) -> Web:
    """A page of the site."""
    web = Web(await new_page(failing=True))
    sites = {"site": create_app(ScriptedUpstream())[0], "elsewhere": Quart(__name__)}
    addresses = [await stack.enter_async_context(serve_app(app_for(web, app, name))) for name, app in sites.items()]
    web.url, web.elsewhere = (f"http://{address}" for address in addresses)
    await web.page.goto(web.url)
    return web


# Headers ------------------------------------------------------------------------------------------------------------

HEADERS = {
    "throws": "() => { throw mine; }",
    "rejects": "async () => { throw mine; }",
    "gives what is no header": "() => ({ Authorization: 'a\\nb' })",
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
async def test_what_the_pages_function_throws_reaches_the_page_as_it_is(web: Web, headers: str) -> None:
    seen = await web.run(
        f"""
        const mine = new Error("log in again"), client = new StreamClient("/api", {{ headers: {headers} }});
        let reconnected = 0;
        const errors = [
            await thrown(whole(client, "streams/1", {{ onreconnect: () => reconnected++ }})),
            await thrown(client.start({{ messages: [] }})),
            await thrown(client.running()),
            await thrown(client.stop("streams/1")),
        ];
        return [errors.map((error) => error === mine || error.name), reconnected];
        """
    )
    assert seen == [[True if "mine" in headers else "TypeError"] * 4, 0]
    assert web.heads == []


async def test_a_function_that_waits_is_waited_for_until_the_signal_is_aborted(web: Web) -> None:
    seen = await web.run(
        """
        const abort = new AbortController(), { signal } = abort;
        const client = new StreamClient("/api", { headers: () => new Promise(() => {}), silence: 1 });
        let reconnected = 0;
        const ends = [
            thrown(whole(client, "streams/1", { signal, onreconnect: () => reconnected++ })),
            thrown(client.start({ messages: [] }, { signal })),
        ];
        await new Promise((done) => setTimeout(done, 1000)); // 10 ms: longer than the silence that is allowed
        abort.abort("enough");
        return [await Promise.all(ends), reconnected];
        """
    )
    assert (seen, web.heads) == ([["enough", "enough"], 0], [])


@pytest.mark.parametrize("given", ["{ Authorization: 'Bearer t', 'X-Token': 't' }", "() => [['X-Token', 't']]"])
async def test_the_pages_headers_and_cookies_reach_the_origin_of_the_base_only(web: Web, given: str) -> None:
    web.answers = [(STREAM, 200, EVENTS), (b"", 204, {})] * 2
    texts = await web.run(
        f"""
        const fetch = (url, init) => globalThis.fetch(url, {{ credentials: "include", ...init }});
        const client = new StreamClient("/api", {{ headers: {given}, fetch }});
        const texts = [];
        for (const origin of ["", argument]) {{
            texts.push((await whole(client, `${{origin}}/api/streams/1`)).text);
            await client.stop(`${{origin}}/api/streams/1`);
        }}
        return texts;
        """,
        web.elsewhere,
    )
    assert texts == ["Hello", "Hello"]
    sent = [(name, method, "X-Token" in head, "Cookie" in head) for name, method, head in web.heads]
    assert sent == [
        ("site", "GET", True, True),
        ("site", "DELETE", True, True),
        ("elsewhere", "GET", False, False),
        ("elsewhere", "DELETE", False, False),
    ]
    assert "Authorization" not in str(web.heads[2:])


async def test_a_stream_that_is_stopped_can_be_erased_as_well(web: Web) -> None:
    asked = await web.run(
        """
        const asked = [];
        const fetch = async (url, { method }) => {
            asked.push(`${method} ${new URL(url, location).search}`);
            return new Response(null, { status: 204 });
        };
        const client = new StreamClient("/api", { fetch });
        await client.stop("streams/1");
        await client.stop("streams/1", { erase: true });
        await client.stop("streams/1?a=b", { erase: true });
        return asked;
        """
    )
    assert asked == ["DELETE ", "DELETE ?erase=1", "DELETE ?a=b&erase=1"]


@pytest.mark.parametrize("status", [302, 303, 307, 308])
async def test_a_redirect_is_not_followed(web: Web, status: int) -> None:
    web.answers = [(b"", status, {"Location": f"{web.elsewhere}/api/streams"})] * 3
    errors = await web.run(
        """
        const client = new StreamClient("/api", { headers: { "X-Token": "t" } });
        return [
            await refused(whole(client, "streams/1")),
            await refused(client.start({ messages: [] })),
            await refused(client.running()),
        ];
        """
    )
    assert errors == [[0, "redirected", "You may have been logged out. Please reload the page.", 0]] * 3
    assert {name for name, _, _ in web.heads} == {"site"}


# Proxies ------------------------------------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}
PAGE = b"<html><h1>Sorry</h1></html>"
TOO_LONG = "This message is too long for the server. Please shorten it."
AWAY = "The server can't be reached at the moment. Please try again in a few seconds."
UNAVAILABLE = "The server is not available at the moment. Please try again later."
SLOW = "The server took too long to answer. Please try again."
OURS = b'{"error": {"code": "draining", "message": "m", "user_message": "Bitte warten."}}'

RESPONSES: dict[str, tuple[Answer, list[Any]]] = {
    "413, a page": ((PAGE, 413, HTML), [413, "request_too_large", TOO_LONG, 0]),
    "502, a page": ((PAGE, 502, HTML), [502, "bad_gateway", AWAY, 0]),
    "502, nothing": ((b"", 502, {}), [502, "bad_gateway", AWAY, 0]),
    "502, other JSON": ((b'{"error": "bad gateway"}', 502, JSON), [502, "bad_gateway", AWAY, 0]),
    "502, numbers": ((b'{"error": {"code": 502, "message": []}}', 502, JSON), [502, "bad_gateway", AWAY, 0]),
    "502, a list": ((b"[null]", 502, JSON), [502, "bad_gateway", AWAY, 0]),
    "503, a page": ((PAGE, 503, {**HTML, "Retry-After": "7"}), [503, "service_unavailable", UNAVAILABLE, 7000]),
    "504, a page": ((PAGE, 504, HTML), [504, "gateway_timeout", SLOW, 0]),
    "504, OpenAI's format": ((b'{"error": {"code": "late"}}', 504, JSON), [504, "late", SLOW, 0]),
    "503, our own": ((OURS, 503, {**JSON, "Retry-After": "2"}), [503, "draining", "Bitte warten.", 2000]),
}


@pytest.mark.parametrize(("answer", "expected"), RESPONSES.values(), ids=RESPONSES)
async def test_a_proxys_response_has_a_code_and_a_sentence(web: Web, answer: Answer, expected: list[Any]) -> None:
    web.answers = [answer] * 3
    script = """
        const client = new StreamClient("/api");
        return [await refused(client.start({})), await refused(client.running()), await refused(client.stop("x"))];
    """
    assert await web.run(script) == [expected] * 3


async def test_a_stream_is_followed_through_a_proxys_responses_which_the_page_may_show(web: Web) -> None:
    web.answers = [
        (PAGE, 502, HTML),
        (b"", 504, {}),
        (PAGE, 503, {"Retry-After": "9"}),
        (OURS, 503, JSON),
        (STREAM, 200, EVENTS),
    ]
    seen = await web.run("return whole(new StreamClient('/api'), 'streams/1')")
    assert seen["text"] == "Hello"
    assert [each[:3] for each in seen["reconnections"]] == [
        ["HTTP 502", "bad_gateway", AWAY],
        ["HTTP 504", "gateway_timeout", SLOW],
        ["HTTP 503", "service_unavailable", UNAVAILABLE],
        ["HTTP 503", "draining", "Bitte warten."],
    ]
    assert seen["reconnections"][2][3] >= 9000


async def test_a_stream_is_not_followed_after_a_413(web: Web) -> None:
    web.answers = [(PAGE, 413, HTML)]
    seen = await web.run("return refused(whole(new StreamClient('/api'), 'streams/1'))")
    assert seen == [413, "request_too_large", TOO_LONG, 0]


async def test_a_response_without_a_body_is_said_to_have_none(web: Web) -> None:
    seen = await web.run(
        """
        const headers = new Headers({ "Content-Type": "text/event-stream" });
        const fetch = async () => ({ status: 200, ok: true, headers }); // as React Native's
        const error = await thrown(whole(new StreamClient("/api", { fetch }), "streams/1"));
        return [error instanceof StreamError, error.status, error.code, error.message, error.userMessage];
        """
    )
    assert seen[:3] == [True, 200, "no_body"]
    assert "has no body" in seen[3]
    assert seen[4] == "Answers can't be shown in this browser."
