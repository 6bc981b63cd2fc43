"""What docs/discussion/security.md promises: where a threat had no test of its own, it has it here."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quart import Quart

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.auth import on_behalf_of
from quart_openai_sse.testing import ScriptedUpstream, chunk, error, finish, read, refused
from quart_openai_sse.web.blueprint import ROUTES
from tests.conftest import ANN, BOB, QUESTION, TOKENS, CreateApp, Serve
from tests.raw import CLOSING_HEAD, Peer, raw_upstream

ROOT = Path(__file__).parents[1]
BODY = {"model": "scripted", "messages": QUESTION}
STREAM = {**BODY, "stream": True}
KEY = "sk-the-key-of-this-server"
PUBLIC = {"client", "health", "ready"}
ALL_ROUTES = [route for group in ROUTES.values() for route in group]
STREAM_ID = "0" * 32


async def answer(peer: Peer) -> None:
    """An upstream that says hi."""
    await peer.send(CLOSING_HEAD + chunk("hi") + finish())
    raise ConnectionError


async def exchange(client: httpx.AsyncClient, data: bytes) -> bytes:
    """What the server says to these bytes, until it hangs up or has answered whole."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(data)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


def raw_request(*lines: bytes, body: Any = STREAM) -> bytes:
    """A request with these header lines as they are, which no client would send."""
    content = json.dumps(body).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1",
        b"Host: chat.example",
        b"Authorization: Bearer token-ann",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(content),
        b"Connection: close",
        *lines,
    )
    return b"\r\n".join(head) + b"\r\n\r\n" + content


# Open relay, and addresses that others choose -------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path", "endpoint"), ALL_ROUTES)
async def test_every_route_that_is_not_public_asks_who_calls(
    create_app: CreateApp, serve: Serve, method: str, path: str, endpoint: str
) -> None:
    upstream = ScriptedUpstream()
    client = await serve(create_app(upstream)[0], headers={})
    url = "/v1" + path.replace("<stream_id>", STREAM_ID)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic token-ann"}, {"Cookie": "a=b"}):
        response = await client.request(method, url, json=STREAM if method == "POST" else None, headers=headers)
        assert response.status_code == (200 if endpoint in PUBLIC else 401)
        assert upstream.requests == []


async def test_no_request_chooses_where_it_is_sent(create_app: CreateApp, serve: Serve) -> None:
    async with raw_upstream(answer) as ours, raw_upstream(answer) as theirs:
        host = theirs.base_url.removeprefix("http://").removesuffix("/v1")
        members = {"base_url": theirs.base_url, "api_base": theirs.base_url, "url": theirs.base_url, "host": host}
        # Some of them are refused unless they are allowed, and even then they choose nothing here.
        client = await serve(create_app(base_url=ours.base_url, api_key=KEY, allowed_members=list(members))[0])
        headers = {"Host": host, "X-Forwarded-Host": host, "Forwarded": f"host={host}", "X-Original-URL": "/elsewhere"}
        response = await client.post("/v1/chat/completions", json={**STREAM, **members}, headers=headers)
        assert (await read(response.content)).text == "hi"
        # A proxy would go where this says.
        await exchange(client, raw_request().replace(b"POST /v1", b"POST " + theirs.base_url.encode(), 1))
    assert theirs.requests == []
    assert {peer.head.split(b"\r\n")[0] for peer in ours.requests} == {b"POST /v1/chat/completions HTTP/1.1"}
    assert host.encode() not in ours.requests[0].head


async def test_nothing_of_a_clients_headers_goes_upstream_but_a_sane_trace_id(
    create_app: CreateApp, serve: Serve
) -> None:
    async with raw_upstream(answer) as upstream:
        client = await serve(create_app(base_url=upstream.base_url, api_key=KEY)[0])
        sent = {
            "Cookie": "session=canary-1",
            "X-Api-Key": "canary-2",
            "OpenAI-Organization": "canary-3",
            "X-Forwarded-For": "canary-4",
            "User-Agent": "canary-5",
            "X-Trace-ID": "trace-7",
        }
        assert (await client.post("/v1/chat/completions", json=STREAM, headers=sent)).status_code == 200
    head = upstream.requests[0].head
    assert b"canary" not in head
    assert b"token-ann" not in head
    assert b"X-Trace-ID: trace-7\r\n" in head


# Keys and logs --------------------------------------------------------------------------------------------------------

ECHOES = {
    "in a message": {"message": f"bad key: {KEY}"},
    "in a code": {"message": "no", "code": KEY},
    "in a type": {"message": "no", "type": f"type of {KEY}"},
    "in a param": {"message": "no", "param": KEY},
}


@pytest.mark.parametrize("within", [False, True], ids=["before the stream", "within the stream"])
@pytest.mark.parametrize("told", ECHOES.values(), ids=ECHOES)
async def test_a_key_that_the_upstream_tells_in_an_error_reaches_nobody(
    create_app: CreateApp,
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    told: dict[str, str],
    within: bool,
) -> None:
    body = json.dumps({"error": told}).encode()
    refusal = b"HTTP/1.1 400 X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    async def tell(peer: Peer) -> None:
        await peer.send(CLOSING_HEAD + chunk("hi") + b"data: " + body + b"\n\n" if within else refusal)
        raise ConnectionError

    caplog.set_level(logging.DEBUG, "quart_openai_sse")
    async with raw_upstream(tell) as upstream:
        client = await serve(create_app(base_url=upstream.base_url, api_key=KEY)[0])
        for path in ("/v1/chat/completions", "/v1/streams"):
            response = await client.post(path, json=STREAM, headers={"Accept": "text/event-stream"})
            assert response.status_code == (200 if within else 400)
            assert b"error" in response.content
            assert KEY not in response.text
    assert upstream.requests
    assert KEY not in everything(caplog)


PRIVATE = "org-abc123 has $0.02 left at http://10.0.0.7:8000 and gpu-7.acme.internal"


@pytest.mark.parametrize("within", [False, True], ids=["before the stream", "within the stream"])
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 429, 500, 503])
async def test_callers_are_not_told_of_our_account_or_our_servers(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture, status: int, within: bool
) -> None:
    body = json.dumps({"error": {"message": PRIVATE, "code": status}}).encode()
    refusal = b"HTTP/1.1 %d X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)

    async def tell(peer: Peer) -> None:
        await peer.send(CLOSING_HEAD + chunk("hi") + b"data: " + body + b"\n\n" if within else refusal)
        raise ConnectionError

    caplog.set_level(logging.DEBUG, "quart_openai_sse")
    pieces = ("org-abc123", "$0.02", "10.0.0.7", "gpu-7.acme.internal")
    async with raw_upstream(tell) as upstream:
        client = await serve(create_app(base_url=upstream.base_url)[0])
        for stream in (True,) if within else (True, False):
            response = await client.post("/v1/chat/completions", json={**STREAM, "stream": stream})
            assert b"error" in response.content
            assert [piece for piece in pieces if piece in response.text + str(response.headers)] == []
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    warnings = [line for line in lines if "callers are not told" in line]
    assert len(warnings) == (1 if within else 2)
    assert all(f"status {status}: " in line and all(piece in line for piece in pieces) for line in warnings)


async def test_no_log_holds_a_prompt_an_answer_a_key_a_token_or_a_cookie(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    scripts = iter([chunk("canary-answer") + finish(), chunk("canary-answer"), error("canary-message"), b"canary {"])

    async def fail_more_and_more(peer: Peer) -> None:
        await peer.send(CLOSING_HEAD + next(scripts))
        raise ConnectionError

    question = [{"role": "user", "content": "canary-prompt"}]
    tokens = {"canary-token": "ann"}
    headers = {"Authorization": "Bearer canary-token", "Cookie": "session=canary-cookie"}
    async with raw_upstream(fail_more_and_more) as upstream:
        app, _ = create_app(base_url=upstream.base_url, api_key="canary-key", auth=bearer_tokens(tokens))
        client = await serve(app, headers=headers)
        await client.get(f"/v1/streams/{STREAM_ID}?last_event_id=canary-query", headers={"Last-Event-ID": "canary-id"})
        for _ in range(4):
            await client.post("/v1/chat/completions", json={"model": "m", "messages": question, "stream": True})
        await client.post("/v1/chat/completions", json={"model": "m", "messages": "canary-prompt"})
        await client.post(
            "/v1/chat/completions", content=b"canary-prompt", headers={"Content-Type": "application/json"}
        )
        await client.post("/v1/chat/completions", json=BODY, headers={"Authorization": "Bearer canary-other"})
        assert len(upstream.requests) == 4
    said = everything(caplog)
    assert "quart_openai_sse.response" in said
    assert re.findall("canary-[a-z]+", said) == []


def everything(caplog: pytest.LogCaptureFixture) -> str:
    """All that was logged: texts, arguments, extra fields and tracebacks, but for the test's own client."""
    formatter = logging.Formatter()
    ours = [record for record in caplog.records if not record.name.startswith(("httpcore", "httpx"))]
    return "\n".join(formatter.format(record) + repr(vars(record)) for record in ours)


@pytest.mark.parametrize("code", ["a\nINFO forged", "a\r\nb", "\x1b[31m", "\u2028", "x" * 1000], ids=ascii)
async def test_an_upstreams_error_cannot_forge_a_log_line(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    caplog.set_level(logging.INFO, "quart_openai_sse")
    client = await serve(create_app(ScriptedUpstream([error("no", code=code)], [refused(503, code=code)]))[0])
    for status in (502, 503):
        response = await client.post("/v1/chat/completions", json=STREAM)
        assert (response.status_code, response.json()["error"]["message"]) == (status, "no" if status == 502 else ANY)
    lines = [record.getMessage() for record in caplog.records if record.name == "quart_openai_sse.stream"]
    assert len(lines) == 2
    assert all(line.isprintable() and len(line) < 400 for line in lines)


ANY = "The script refused."


# What is put into a stream --------------------------------------------------------------------------------------------


async def test_what_an_upstream_smuggles_into_an_event_stays_in_it(create_app: CreateApp, serve: Serve) -> None:
    lines = b'{"choices":\rdata: [{"index": 0,\r\ndata: "delta": {"content": "x\\nid: 9\\n\\nevent: failed"}}]}'
    smuggled = b"event: failed\rid: 77\rretry: 1\rdata: " + lines + b"\n\n"
    client = await serve(create_app(ScriptedUpstream([smuggled, finish()]))[0])
    url = (await client.post("/v1/streams", json=BODY)).json()["url"]
    for form, names in (("text", ["delta", "completed"]), ("openai", ["message"] * 3)):
        seen = await read((await client.get(url, params={"format": form})).content)
        assert [event.event for event in seen.events] == names
        assert seen.ids == (["1", "end"] if form == "text" else ["1", "2", "end"])
        assert (seen.text, seen.outcome) == ("x\nid: 9\n\nevent: failed", "completed")


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12) | st.from_regex(r"[0-9]{1,25}|end\s?"))
@example("")
@example("3")
@example("03")
@example("٣")
@example("end")
@example("1" + "0" * 5000)
def test_no_last_event_id_gives_anything_but_the_rest_behind_it(after: str) -> None:
    async def run() -> None:
        app = Quart("places")
        QuartOpenAISSE(
            app,
            auth=bearer_tokens(TOKENS),
            base_url="http://127.0.0.1:9",
            upstream=lambda _: ScriptedUpstream([chunk("a"), chunk("b"), finish()]),
        )
        async with app.test_app() as running:
            client = running.test_client()
            url = (await (await client.post("/v1/streams", json=BODY, headers=ANN)).get_json())["url"]
            whole = (await read(await (await client.get(url, headers=ANN)).get_data())).ids
            response = await client.get(url, headers=ANN, query_string={"last_event_id": after})
            if after == "end":
                assert response.status_code == 204
            elif after in ("", "1", "2", "3"):
                rest = [place for place in whole if place == "end" or int(place) > int(after or 0)]
                assert (await read(await response.get_data())).ids == rest
            else:
                assert (response.status_code, (await response.get_json())["error"]["code"]) == (
                    400,
                    "invalid_last_event_id",
                )

    asyncio.run(run())


# Streams of others ----------------------------------------------------------------------------------------------------


async def test_a_strangers_stream_is_answered_like_one_that_never_was(create_app: CreateApp, serve: Serve) -> None:
    forever = asyncio.Event()
    client = await serve(create_app(ScriptedUpstream([chunk("hi"), finish()], [chunk("hi"), forever.wait]))[0])
    ended = (await client.post("/v1/streams", json=BODY)).json()["url"]
    await client.get(ended)
    running = (await client.post("/v1/streams", json=BODY)).json()["url"]
    for method in ("GET", "DELETE"):
        for after in ("", "1", "end", "garbage"):
            answers = []
            for url in (f"/v1/streams/{STREAM_ID}", ended, running, "/v1/streams/garbage"):
                response = await client.request(method, url, headers={**BOB, "Last-Event-ID": after})
                own = ("date", "x-request-id", "x-trace-id")
                kept = {name: value for name, value in response.headers.items() if name not in own}
                answers.append((response.status_code, kept, response.content))
            assert answers[0][0] == 404
            assert answers == answers[:1] * 4
    assert len((await client.get("/v1/streams")).json()["data"]) == 1  # nobody stopped it


async def test_no_way_to_a_stream_replays_it_to_anybody_but_its_owner(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream([chunk("secret"), finish()], [chunk("own"), finish()]))[0])
    key = {"Idempotency-Key": "the-same-key"}
    started = await client.post("/v1/streams", json={**BODY, "thread": "diary"}, headers=key)
    url = started.json()["url"]
    assert "secret" in (await client.get(url)).text  # its owner reads it

    for query in ("", "?last_event_id=0", "?last_event_id=1", "?format=openai", "?format=openai&last_event_id=1"):
        assert (await client.get(url + query, headers=BOB)).status_code == 404
    assert (await client.head(url, headers=BOB)).status_code == 404
    for query in ("", "?thread=diary"):
        assert (await client.get("/v1/streams" + query, headers=BOB)).json()["data"] == []
    # The same key and body from another principal start another stream.
    other = await client.post("/v1/streams", json={**BODY, "thread": "diary"}, headers={**BOB, **key})
    assert other.status_code == 201
    assert "own" in (text := (await client.get(other.json()["url"], headers=BOB)).text)
    assert "secret" not in text


async def test_a_streams_id_cannot_be_guessed(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream(), max_streams_per_principal=1000)[0])
    ids = [(await client.post("/v1/streams", json=BODY)).json()["id"] for _ in range(100)]
    assert len(set(ids)) == 100
    assert {len(each) for each in ids} == {32}
    for place in range(32):  # every hexadecimal digit varies: 128 bits
        assert len({each[place] for each in ids}) >= 8


# Other origins --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path", "endpoint"), ALL_ROUTES)
async def test_no_answer_lets_another_origin_in_by_itself(
    create_app: CreateApp, serve: Serve, method: str, path: str, endpoint: str
) -> None:
    client = await serve(create_app(ScriptedUpstream(), trusted_origins=["https://friend.example"])[0])
    url = "/v1" + path.replace("<stream_id>", STREAM_ID)
    for origin in ("https://friend.example", "https://evil.example", "null"):
        for asked in (method, "OPTIONS"):
            headers = {"Origin": origin, "Access-Control-Request-Method": method, "Accept": "text/event-stream"}
            response = await client.request(asked, url, json=STREAM if asked == "POST" else None, headers=headers)
            assert [name for name in response.headers if name.startswith("access-control")] == []


# Headers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", [b"\r", b"\n", b"\0", b"\r\n\t", b"\x0b", b"\xe2\x80\xa8", b"%0d%0a"], ids=repr)
@pytest.mark.parametrize("name", [b"X-Trace-ID", b"traceparent", b"X-On-Behalf-Of", b"Idempotency-Key"])
async def test_no_header_can_be_smuggled_through_ours(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture, name: bytes, between: bytes
) -> None:
    caplog.set_level(logging.INFO, "quart_openai_sse")
    async with raw_upstream(answer) as upstream:
        auth = on_behalf_of(bearer_tokens(TOKENS), allowed={"ann"})
        client = await serve(create_app(base_url=upstream.base_url, auth=auth)[0])
        said = await exchange(client, raw_request(name + b": a" + between + b"Injected: yes"))
    assert re.match(rb"HTTP/1.1 (200|400) ", said)
    head = said.partition(b"\r\n\r\n")[0].lower()
    assert b"injected" not in head
    assert [peer.head for peer in upstream.requests if b"njected" in peer.head] == []
    assert all(record.getMessage().isprintable() for record in caplog.records)


# Memory and time ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
@pytest.mark.parametrize("status", [200, 500])
async def test_a_document_without_end_is_cut_short(create_app: CreateApp, serve: Serve, path: str, status: int) -> None:
    async def endless(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" % status)
        while True:
            await peer.send(b"[" * 100_000)

    async with raw_upstream(endless) as upstream:
        client = await serve(create_app(base_url=upstream.base_url, max_bytes=1 << 20)[0])
        method = "GET" if path == "/v1/models" else "POST"
        response = await client.request(method, path, json=BODY if method == "POST" else None)
        assert response.status_code in (500, 502)
        async with asyncio.timeout(5):
            await upstream.closed.get()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_document_without_end_is_cut_short_also_if_it_has_lines(
    create_app: CreateApp, serve: Serve, stream: bool
) -> None:
    async def endless(peer: Peer) -> None:
        await peer.send(CLOSING_HEAD)
        while True:
            await peer.send(b"<p>\n\n" * 10_000)

    async with raw_upstream(endless) as upstream:
        client = await serve(create_app(base_url=upstream.base_url, max_bytes=1 << 20)[0])
        response = await client.post("/v1/chat/completions", json={**BODY, "stream": stream})
        assert response.status_code == (502 if stream else 500)
        assert ("document" in response.json()["error"]["message"]) is stream
        async with asyncio.timeout(5):
            await upstream.closed.get()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_compressed_answer_is_not_unpacked(create_app: CreateApp, serve: Serve, stream: bool) -> None:
    whole = chunk("hi") + finish() if stream else b'{"choices": [{"index": 0, "message": {"content": "hi"}}]}'

    async def compressed(peer: Peer) -> None:
        head = CLOSING_HEAD.replace(b"Connection", b"Content-Encoding: gzip\r\nConnection")
        await peer.send(head + gzip.compress(whole))
        raise ConnectionError

    async with raw_upstream(compressed) as upstream:
        client = await serve(create_app(base_url=upstream.base_url)[0])
        response = await client.post("/v1/chat/completions", json={**BODY, "stream": stream})
    assert response.status_code == 502
    assert b"accept-encoding: identity" in upstream.requests[0].head.lower()


# What the page says, and what the repository does ---------------------------------------------------------------------

in_the_repository = pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="this copy is not the repository")


def named_tests() -> Iterator[tuple[str, str]]:
    page = ROOT / "docs/discussion/security.md"
    if page.is_file():
        yield from re.findall(r"`([\w/]+\.py)::(test_\w+)`", page.read_text("utf-8"))


@pytest.mark.parametrize(("file", "name"), sorted(set(named_tests())))
def test_every_test_that_the_page_names_is_there(file: str, name: str) -> None:
    source = (ROOT / "tests" / file).read_text("utf-8")
    assert re.search(rf"^(async )?def {name}\(", source, re.M)


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not part of this copy")
def test_every_threat_on_the_page_names_a_test() -> None:
    page = (ROOT / "docs/discussion/security.md").read_text("utf-8")
    rows = re.findall(r"^\| \*\*(.+?)\*\*.*\|$", page, re.M)
    assert len(rows) >= 15
    assert [row for row in re.findall(r"^\| \*\*.*\|$", page, re.M) if ".py::test_" not in row] == []


@in_the_repository
def test_every_pin_is_of_one_version() -> None:
    lines = (ROOT / ".ci/constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r'[\w.-]+==[\w.]+(; python_version [<>=]+ "3\.\d+")?', pin)] == []


@in_the_repository
def test_the_workflows_pin_their_actions_and_may_only_read() -> None:
    for workflow in (ROOT / ".github/workflows").glob("*.yml"):
        text = workflow.read_text("utf-8")
        used = re.findall(r"uses: (\S+)", text)
        assert used
        assert [action for action in used if not re.search("@[0-9a-f]{40}$", action)] == []
        assert re.search(r"^permissions:\n  contents: read$", text, re.M)
        assert ": write" not in text
