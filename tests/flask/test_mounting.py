"""The dispatcher, on a real socket: a Flask app and a Quart app at one address."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from flask import Response as FlaskResponse
from flask import request as flask_request
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded
from playwright.async_api import Browser, expect
from quart import Quart, request, websocket
from werkzeug.exceptions import ClientDisconnected

from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.flask import mount
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read, serve_app
from quart_openai_sse.web.middleware import ASGIApp, Message, Receive, Scope
from tests.conftest import QUESTION, CreateApp, Serve


@pytest.fixture
def flask_app() -> Flask:
    """An app that answers every path with the request as it sees it."""
    app = Flask(__name__)

    @app.route("/", defaults={"path": ""}, methods=["GET", "POST"])
    @app.route("/<path:path>", methods=["GET", "POST"])
    def old(path: str) -> dict[str, Any]:
        return {
            "app": "flask",
            "path": flask_request.path,
            "root": flask_request.root_path,
            "query": flask_request.query_string.decode(),
            "cookies": flask_request.cookies,
            "body": hashlib.sha256(flask_request.get_data()).hexdigest(),
        }

    return app


@pytest.fixture
def quart_app() -> Quart:
    """An app with routes below /v1, which records whether it is being served."""
    app = Quart(__name__)
    app.config["SERVED"] = []

    @app.route("/v1")
    @app.route("/v1/")
    @app.route("/v1/<path:path>")
    async def new(path: str = "") -> dict[str, Any]:
        return {"app": "quart", "path": request.path, "root": request.root_path}

    @app.websocket("/v1/ws")
    async def talk() -> None:
        await websocket.send("hello")

    @app.before_serving
    async def begin() -> None:
        app.config["SERVED"].append("begin")

    @app.after_serving
    async def end() -> None:
        app.config["SERVED"].append("end")

    return app


def request_to(path: str, *, method: str = "GET", headers: Iterable[tuple[bytes, bytes]] = ((b"host", b"a"),)) -> Scope:
    """An ASGI scope."""
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [*headers],
    }


def received() -> Receive:
    """An ASGI `receive` that returns a request without a body, and then waits."""
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        if (message := next(messages, None)) is None:
            await asyncio.Event().wait()
        assert message
        return message

    return receive


PATHS = {
    "/": "flask",
    "/v": "flask",
    "/v1": "quart",
    "/v1/": "quart",
    "/v1/streams/1": "quart",
    "/v1x": "flask",
    "/v1x/streams": "flask",
    "/v10/v1/": "flask",
    "/V1/models": "flask",
    "/old/v1/models": "flask",
    "/old//v1/models": "flask",
    "//v1/models": "quart",  # as which Quart, and Flask, read /v1/models
    "/%2Fv1/models": "quart",
    "http://a/v1/models": "quart",
    "http://a/old": "flask",
    "/%76%31/models": "quart",
    "/v1%2Fmodels": "quart",
}


@pytest.mark.parametrize(("path", "app"), PATHS.items())
async def test_a_prefix_ends_at_a_slash(path: str, app: str, flask_app: Flask, quart_app: Quart, serve: Serve) -> None:
    client = await serve(mount(flask_app, quart_app))
    answer = (await client.get("/", extensions={"target": path.encode()})).json()
    assert answer["app"] == app
    assert "//" not in answer["path"] or path == "/old//v1/models"


async def test_several_prefixes_are_those_of_one_app(flask_app: Flask, quart_app: Quart, serve: Serve) -> None:
    @quart_app.get("/ask")
    async def ask() -> dict[str, str]:
        return {"app": "quart"}

    client = await serve(mount(flask_app, quart_app, prefix=["/v1/", "/ask"]))
    answers = [(await client.get(path)).json()["app"] for path in ("/v1/x", "/ask", "/asked")]
    assert answers == ["quart", "quart", "flask"]


@pytest.mark.parametrize("prefix", ["", "/", "v1", [], ["/v1", ""]])
def test_a_prefix_that_is_none_is_refused(prefix: Any, flask_app: Flask, quart_app: Quart) -> None:
    with pytest.raises(ConfigurationError, match="prefix must be"):
        mount(flask_app, quart_app, prefix=prefix)


def test_no_threads_are_refused(flask_app: Flask, quart_app: Quart) -> None:
    with pytest.raises(ConfigurationError, match="threads must be at least 1"):
        mount(flask_app, quart_app, threads=0)


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
async def test_a_large_body_reaches_flask_whole(
    chunked: bool, flask_app: Flask, quart_app: Quart, serve: Serve
) -> None:
    client = await serve(mount(flask_app, quart_app))
    body = bytes(range(256)) * 4 * 3000  # 3 MB

    async def pieces() -> Any:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    answered = (await client.post("/upload", content=pieces() if chunked else body)).json()
    assert answered["body"] == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("header", [(b"content-length", b"10"), (b"transfer-encoding", b"chunked")])
async def test_half_a_body_is_not_taken_for_a_whole_one(
    header: tuple[bytes, bytes], flask_app: Flask, quart_app: Quart
) -> None:
    received: list[bytes] = []
    refused: list[Exception] = []

    @flask_app.post("/half")
    def half() -> str:
        try:
            received.append(flask_request.get_data())
        except ClientDisconnected as error:
            refused.append(error)
            raise
        return ""

    messages = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        pass

    headers = [(b"host", b"a"), header]
    scope = request_to("/half", method="POST", headers=headers)
    await mount(flask_app, quart_app)(scope, receive, send)
    assert (received, len(refused)) == ([], 1)


async def test_a_whole_request_is_carried_out_for_a_client_that_did_not_wait(
    flask_app: Flask, quart_app: Quart
) -> None:
    received: list[bytes] = []
    left = threading.Event()

    @flask_app.post("/beacon")
    def beacon() -> str:
        assert left.wait(10)
        received.append(flask_request.get_data())
        return ""

    messages = iter([{"type": "http.request", "body": b"seen", "more_body": False}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        message = next(messages)
        if message["type"] == "http.disconnect":
            left.set()
        return message

    async def send(message: Message) -> None:
        pass

    headers = [(b"host", b"a"), (b"content-length", b"4")]
    scope = request_to("/beacon", method="POST", headers=headers)
    await mount(flask_app, quart_app)(scope, receive, send)
    assert received == [b"seen"]


async def test_a_client_that_disconnects_while_flask_computes_is_sent_nothing(
    flask_app: Flask, quart_app: Quart
) -> None:
    computing, left = threading.Event(), threading.Event()

    @flask_app.get("/slow")
    def slow() -> str:
        computing.set()
        assert left.wait(10)
        return "done"

    messages = iter([{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}])
    sent: list[Message] = []

    async def receive() -> Message:
        message = next(messages)
        if message["type"] == "http.disconnect":
            assert await asyncio.to_thread(computing.wait, 10)
            left.set()
        return message

    async def send(message: Message) -> None:
        sent.append(message)

    scope = request_to("/slow")
    await mount(flask_app, quart_app)(scope, receive, send)
    assert sent == []  # not an end without the body before it, which servers log as an error


async def test_flask_streams_and_is_not_gathered(flask_app: Flask, quart_app: Quart, serve: Serve) -> None:
    goes_on = threading.Event()

    @flask_app.get("/export")
    def export() -> FlaskResponse:
        def lines() -> Iterator[str]:
            yield "first\n"
            assert goes_on.wait(10)
            yield "last\n"

        return FlaskResponse(lines(), mimetype="text/csv")

    client = await serve(mount(flask_app, quart_app))
    async with client.stream("GET", "/export") as response:
        pieces = response.aiter_bytes()
        assert await anext(pieces) == b"first\n"
        goes_on.set()
        assert b"".join([piece async for piece in pieces]) == b"last\n"


async def test_streams_pass_event_by_event_while_every_thread_of_flask_is_busy(
    create_app: CreateApp, flask_app: Flask, serve: Serve
) -> None:
    busy, goes_on = threading.Event(), threading.Event()

    @flask_app.get("/slow")
    def slow() -> str:
        busy.set()
        assert goes_on.wait(10)
        return "done"

    upstream = ScriptedUpstream([chunk("Far."), finish()])
    app, _ = create_app(upstream)
    client = await serve(mount(flask_app, app, threads=1))
    async with asyncio.TaskGroup() as group:
        page = group.create_task(client.get("/slow"))
        await asyncio.to_thread(busy.wait, 10)
        started = (await client.post("/v1/streams", json={"messages": QUESTION})).json()
        assert (await read((await client.get(started["url"])).content)).text == "Far."
        goes_on.set()
    assert page.result().text == "done"


async def test_the_life_of_the_server_is_quarts(flask_app: Flask, quart_app: Quart) -> None:
    sent: list[Message] = []
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    await mount(flask_app, quart_app)({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert quart_app.config["SERVED"] == ["begin", "end"]


async def test_below_a_path_of_the_servers_both_apps_know_it(flask_app: Flask, quart_app: Quart) -> None:
    async with below_old(mount(flask_app, quart_app)) as client:
        assert (await client.get("/old/v1/x")).json() == {"app": "quart", "path": "/v1/x", "root": "/old"}
        page = (await client.get("/old/page")).json()
    assert (page["app"], page["path"], page["root"]) == ("flask", "/page", "/old")


async def test_flask_is_told_query_path_and_cookies(flask_app: Flask, quart_app: Quart) -> None:
    # HTTP/2 clients may send each cookie in a separate header.
    headers = [("Cookie", "a=1"), ("Cookie", "session=x.y-z")]
    async with below_old(mount(flask_app, quart_app), "") as client:
        page = (await client.get("/caf%C3%A9?q=%C3%BC&r=1", headers=headers)).json()
    assert page["path"] == "/café"
    assert page["query"] == "q=%C3%BC&r=1"
    assert page["cookies"] == {"a": "1", "session": "x.y-z"}


def below_old(app: ASGIApp, root_path: str = "/old") -> httpx.AsyncClient:
    """A client of the app, which the server runs below *root_path*."""
    transport = httpx.ASGITransport(app=app, root_path=root_path)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://old")


async def connect(app: ASGIApp, path: str) -> list[str]:
    """The messages that a server gets for a websocket."""
    scope = {"type": "websocket", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "ws", "path": path}
    scope |= {"raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": [(b"host", b"a")]}
    scope |= {"client": None, "server": None, "subprotocols": [], "extensions": {}}
    sent: list[str] = []
    messages = iter([{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}])
    closed = asyncio.Event()
    closed.set()

    async def receive() -> Message:
        await closed.wait()
        closed.clear()
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message["type"])
        if message["type"] == "websocket.close":
            closed.set()

    await app(scope, receive, send)
    return sent


async def test_a_websocket_of_flasks_is_refused_and_one_of_quarts_is_not(flask_app: Flask, quart_app: Quart) -> None:
    app = mount(flask_app, quart_app)
    assert await connect(app, "/ws") == ["websocket.close"]
    assert await connect(app, "/v1/ws") == ["websocket.accept", "websocket.send", "websocket.close"]


async def test_an_error_of_flasks_is_its_own_500(flask_app: Flask, quart_app: Quart, serve: Serve) -> None:
    @flask_app.get("/broken")
    def broken() -> str:
        raise ZeroDivisionError

    client = await serve(mount(flask_app, quart_app))
    assert (await client.get("/broken")).status_code == 500
    assert (await client.get("/")).json()["app"] == "flask"


class Endless:
    """A view of a Flask app with an endless response."""

    __name__ = "endless"

    def __init__(self) -> None:
        self.made = 0
        self.closed = threading.Event()

    def __call__(self) -> FlaskResponse:
        response = FlaskResponse(self._pieces())
        response.call_on_close(self.closed.set)
        return response

    def _pieces(self) -> Iterator[bytes]:
        while True:
            self.made += 1
            yield b"x" * 1000
            time.sleep(0.001)  # only its pace: nothing waits for it


async def test_a_client_that_leaves_ends_its_thread(flask_app: Flask, quart_app: Quart, serve: Serve) -> None:
    endless = Endless()
    flask_app.add_url_rule("/endless", view_func=endless)
    client = await serve(mount(flask_app, quart_app, threads=1))
    async with client.stream("GET", "/endless") as response:
        await anext(response.aiter_bytes())
    assert await asyncio.to_thread(endless.closed.wait, 10)
    assert (await client.get("/")).json()["app"] == "flask"


@pytest.mark.parametrize("stalled", [True, False], ids=["the client takes nothing", "the client takes all"])
async def test_a_request_that_the_server_gives_up_ends_its_thread(
    stalled: bool, flask_app: Flask, quart_app: Quart
) -> None:
    endless = Endless()
    flask_app.add_url_rule("/endless", view_func=endless)
    begun = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            begun.set()
            if stalled:
                await asyncio.Event().wait()

    request = asyncio.ensure_future(mount(flask_app, quart_app)(request_to("/endless"), received(), send))
    await begun.wait()
    if stalled:
        while endless.made < 11:  # until the adapter's queue to the client is full
            await asyncio.sleep(0.001)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert endless.closed.is_set()


async def test_an_upload_that_the_server_gives_up_ends_its_thread(flask_app: Flask, quart_app: Quart) -> None:
    begun = asyncio.Event()

    async def receive() -> Message:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        pass

    headers = [(b"host", b"a"), (b"content-length", b"10")]
    scope = request_to("/up", method="POST", headers=headers)
    request = asyncio.ensure_future(mount(flask_app, quart_app)(scope, receive, send))
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(request, 10)


# Uploads that Flask does not read ------------------------------------------------------------------------------------

PIECE = 1 << 16
LARGE = 40_000_000


@pytest.fixture
def refusing_app(flask_app: Flask) -> Flask:
    """An app that answers uploads before or while it reads them."""

    @flask_app.get("/page")
    def page() -> str:
        return "<form method=post enctype=multipart/form-data action=/forbidden><input type=file name=f><button>Go"

    @flask_app.post("/forbidden")
    def forbidden() -> tuple[str, int]:
        return "no", 403

    @flask_app.post("/too-large")
    def too_large() -> str:
        flask_request.max_content_length = 1000
        return str(len(flask_request.get_data()))

    @flask_app.post("/half")
    def half() -> str:
        return str(len(flask_request.stream.read(100_000)))

    @flask_app.post("/empty")
    def empty() -> tuple[str, int]:
        return "", 204

    @flask_app.post("/pieces")
    def pieces() -> FlaskResponse:
        return FlaskResponse(iter(["n", "o"]), status=403)

    @flask_app.post("/breaks-off")
    def breaks_off() -> FlaskResponse:
        def lines() -> Iterator[str]:
            yield "no"
            raise ZeroDivisionError

        return FlaskResponse(lines(), status=403)

    return flask_app


@pytest.fixture
def late_app(flask_app: Flask) -> Flask:
    """An app that reads an upload after its response has begun, and stores the size in `READ`."""
    read: list[int] = flask_app.config.setdefault("READ", [])

    @flask_app.post("/late", defaults={"length": ""})
    @flask_app.post("/late/<length>")
    def late(length: str) -> FlaskResponse:
        stream = flask_request.stream

        def answer() -> Iterator[str]:
            yield "begun"
            read.append(sum(len(piece) for piece in iter(lambda: stream.read(PIECE), b"")))

        return FlaskResponse(answer(), headers={"Content-Length": length} if length else {})

    return flask_app


def send_all_then_read(address: str, path: str, size: int) -> tuple[int, bytes]:
    """The status and the rest of the response, read until the server has closed the connection."""
    host, _, port = address.partition(":")
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head.encode() + bytes(size))
        received = b"".join(iter(lambda: connection.recv(PIECE), b""))
    return int(received.split(b" ", 2)[1]), received.partition(b"\r\n\r\n")[2]


REFUSED = {
    "/forbidden": (403, b"no"),
    "/half": (200, b"100000"),
    "/empty": (204, b""),
    "/pieces": (403, b"1\r\nn\r\n1\r\no\r\n0\r\n\r\n"),
    "/breaks-off": (403, b"2\r\nno\r\n"),
}


async def test_a_client_that_sends_all_of_a_refused_upload_reads_the_answer_and_is_not_kept(
    refusing_app: Flask, quart_app: Quart
) -> None:
    async with serve_app(mount(refusing_app, quart_app)) as address:
        for path, expected in REFUSED.items():
            assert await asyncio.to_thread(send_all_then_read, address, path, LARGE) == expected
        many = [asyncio.to_thread(send_all_then_read, address, "/forbidden", 1_000_000) for _ in range(50)]
        assert await asyncio.gather(*many) == [(403, b"no")] * 50


async def test_an_app_that_raises_before_it_has_read_an_upload_is_a_500_and_no_socket_is_kept(
    quart_app: Quart,
) -> None:
    def broken(environ: Any, start_response: Any) -> Any:
        raise ZeroDivisionError

    async with serve_app(mount(broken, quart_app)) as address:
        assert await asyncio.to_thread(send_all_then_read, address, "/", LARGE) == (500, b"")


async def test_a_blocking_client_is_answered_and_keeps_its_connection(refusing_app: Flask, quart_app: Quart) -> None:
    def ask(address: str) -> list[tuple[int, bytes]]:
        client = http.client.HTTPConnection(address, timeout=20)
        answers = []
        with closing(client):
            for path in ("/forbidden", "/too-large", "/forbidden"):
                client.request("POST", path, body=bytes(LARGE))
                response = client.getresponse()
                answers.append((response.status, response.read()[:2]))
                answers.append(client.sock)
        return answers

    async with serve_app(mount(refusing_app, quart_app)) as address:
        answers = await asyncio.to_thread(ask, address)
    connections = answers[1::2]
    assert answers[::2] == [(403, b"no"), (413, b"<!"), (403, b"no")]
    assert connections[0] is connections[1] is connections[2] is not None


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="session")
async def test_a_browser_shows_the_answer_to_a_refused_upload(
    refusing_app: Flask, quart_app: Quart, browser: Browser, tmp_path: Path
) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(bytes(LARGE))
    fetch = """async ([path, size]) => {
        const response = await fetch(path, { method: "POST", body: new Uint8Array(size) });
        return [response.status, await response.text()];
    }"""
    async with serve_app(mount(refusing_app, quart_app)) as address, await browser.new_context() as context:
        page = await context.new_page()
        await page.goto(f"http://{address}/page")
        assert await page.evaluate(fetch, ["/half", LARGE]) == [200, "100000"]
        await page.locator("input").set_input_files(upload)
        await page.get_by_role("button", name="Go").click()
        await expect(page.locator("body")).to_have_text("no")


@pytest.mark.parametrize("path", ["/late", "/late/5"], ids=["chunked", "with its length"])
async def test_an_app_reads_all_of_an_upload_after_its_response_has_begun(
    path: str, late_app: Flask, quart_app: Quart, serve: Serve
) -> None:
    client = await serve(mount(late_app, quart_app))
    assert (await client.post(path, content=bytes(5_000_000))).text == "begun"
    assert late_app.config["READ"] == [5_000_000]


async def test_a_response_streams_while_its_upload_still_arrives(late_app: Flask, quart_app: Quart) -> None:
    async with serve_app(mount(late_app, quart_app)) as address:
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /late HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nConnection: close\r\n\r\nfirst")
        assert (await reader.readuntil(b"begun\r\n")).startswith(b"HTTP/1.1 200")
        writer.write(b"other")
        assert await reader.read() == b"0\r\n\r\n"
        writer.close()
    assert late_app.config["READ"] == [10]


@pytest.mark.parametrize("silent", [True, False], ids=["it stops sending", "it never stops"])
async def test_a_client_is_not_waited_for_without_end(
    silent: bool, refusing_app: Flask, quart_app: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quart_openai_sse.flask.mounting.LINGERING_TIMEOUT", 0.05 if silent else 1000)
    monkeypatch.setattr("quart_openai_sse.flask.mounting.LINGERING_TIME", 1000 if silent else 0.05)
    async with serve_app(mount(refusing_app, quart_app)) as address:
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /pieces HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n")

        async def send() -> None:
            while not silent:
                writer.write(bytes(PIECE))
                await writer.drain()

        sending = asyncio.ensure_future(send())
        assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 403")
        with suppress(ConnectionError):  # a reset, if it was still sending
            assert await reader.read() == b""
        await asyncio.wait({sending})
        assert silent or sending.exception()
        writer.close()


async def test_a_client_of_an_app_that_raised_is_not_waited_for_without_end(
    refusing_app: Flask, quart_app: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quart_openai_sse.flask.mounting.LINGERING_TIMEOUT", 1000)
    monkeypatch.setattr("quart_openai_sse.flask.mounting.LINGERING_TIME", 0.05)
    async with serve_app(mount(refusing_app, quart_app)) as address:
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /breaks-off HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n")

        async def send() -> None:
            while True:
                writer.write(bytes(PIECE))
                await writer.drain()

        sending = asyncio.ensure_future(send())
        with suppress(ConnectionError):  # a reset, as it was still sending
            assert not (await reader.read()).endswith(b"0\r\n\r\n")
        await asyncio.wait({sending})
        assert sending.exception()
        writer.close()


@pytest.mark.parametrize("length", ["5", "many"], ids=["a valid Content-Length", "an invalid one"])
@pytest.mark.parametrize("method", ["GET", "POST"], ids=["no body", "an upload that is not read"])
async def test_a_server_that_fails_to_send_keeps_neither_the_thread_nor_a_task(
    method: str, length: str, flask_app: Flask, quart_app: Quart
) -> None:
    @flask_app.route("/long", methods=[method])
    def long() -> FlaskResponse:
        return FlaskResponse(iter(["piece"] * 50), headers={"Content-Length": length})

    async def receive() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"more", "more_body": True}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise ConnectionResetError("it is gone")

    app = mount(flask_app, quart_app, threads=1)
    before = asyncio.all_tasks()
    for _ in range(2):  # the second request needs the one thread again
        async with asyncio.timeout(10):
            with pytest.raises(ConnectionResetError):
                await app(request_to("/long", method=method), receive if method == "POST" else received(), send)
    for _ in range(5):  # the cancelled tasks end
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


class Piece(bytes):
    """A piece of an upload, counted while it is in memory."""

    alive = 0

    def __init__(self, *_: Any) -> None:
        Piece.alive += 1

    def __del__(self) -> None:
        Piece.alive -= 1


async def test_an_upload_that_flask_does_not_read_is_not_in_memory(flask_app: Flask, quart_app: Quart) -> None:
    holds, goes_on = threading.Event(), threading.Event()
    taken, most = 0, 0
    sent: list[Message] = []

    @flask_app.post("/holds")
    def holding() -> tuple[str, int]:
        holds.set()
        assert goes_on.wait(10)
        return "no", 403

    async def receive() -> Message:
        nonlocal taken, most
        if taken == 600:
            await asyncio.Event().wait()
        taken += 1
        await asyncio.sleep(0)
        most = max(most, Piece.alive)
        return {"type": "http.request", "body": Piece(bytes(PIECE)), "more_body": taken < 600}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"a"), (b"content-length", b"%d" % (600 * PIECE))]
    scope = request_to("/holds", method="POST", headers=headers)
    request = asyncio.ensure_future(mount(flask_app, quart_app)(scope, receive, send))
    assert await asyncio.to_thread(holds.wait, 10)
    assert taken <= 2  # the client must wait as long as Flask does not read
    goes_on.set()
    await request
    assert (taken, sent[0]["status"], sent[-1]["type"]) == (600, 403, "http.response.body")
    assert most <= 3


async def test_another_request_of_the_same_http2_connection_survives_a_refused_upload(
    refusing_app: Flask, quart_app: Quart
) -> None:
    goes_on = threading.Event()

    @refusing_app.get("/slow")
    def slow() -> str:
        assert goes_on.wait(10)
        return "done"

    def ask(address: str) -> dict[int | None, bytes]:
        host, _, port = address.partition(":")
        bodies: dict[int | None, bytes] = {1: b"", 3: b""}
        left, ended = 2_000_000, set()
        http2 = H2Connection(H2Configuration(client_side=True))
        http2.initiate_connection()
        common = [(":scheme", "http"), (":authority", "a")]
        http2.send_headers(1, [(":method", "GET"), (":path", "/slow"), *common], end_stream=True)
        http2.send_headers(3, [(":method", "POST"), (":path", "/forbidden"), *common])
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while ended != {1, 3}:
                while left and (size := min(left, http2.local_flow_control_window(3), 16_384)):
                    left -= size
                    http2.send_data(3, bytes(size), end_stream=not left)
                connection.sendall(http2.data_to_send())
                received = connection.recv(PIECE)
                assert received, "the server has closed the connection"
                for event in http2.receive_data(received):
                    if isinstance(event, DataReceived):
                        bodies[event.stream_id] += event.data
                    elif isinstance(event, StreamEnded):
                        ended.add(event.stream_id)
                if 3 in ended and not left:
                    goes_on.set()
        return bodies

    async with serve_app(mount(refusing_app, quart_app)) as address:
        assert await asyncio.to_thread(ask, address) == {1: b"done", 3: b"no"}


async def test_flask_is_not_told_of_headers_whose_names_have_an_underscore(
    flask_app: Flask, quart_app: Quart, serve: Serve
) -> None:
    @flask_app.get("/headers")
    def headers() -> dict[str, str]:
        return dict(flask_request.headers)

    client = await serve(mount(flask_app, quart_app))
    seen = (await client.get("/headers", headers={"X_Forwarded_For": "6.6.6.6", "X-Forwarded-Host": "b"})).json()
    assert "X-Forwarded-For" not in seen
    assert seen["X-Forwarded-Host"] == "b"
