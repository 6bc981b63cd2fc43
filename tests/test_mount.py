"""The dispatcher, on a real socket: a Flask app and a Quart app at one address."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from flask import Flask
from flask import Response as FlaskResponse
from flask import request as flask_request
from quart import Quart, request, websocket
from werkzeug.exceptions import ClientDisconnected

from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.middleware import ASGIApp, Message
from quart_openai_sse.mount import mount
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read
from tests.conftest import QUESTION, CreateApp, Serve


@pytest.fixture
def flask_app() -> Flask:
    """It answers every path with what it is told of the request."""
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
    """It answers below /v1, and knows whether it is being served."""
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
    "//v1/models": "flask",
    "/%76%31/models": "quart",  # the same path as /v1/models
    "/v1%2Fmodels": "quart",
}


@pytest.mark.parametrize(("path", "app"), PATHS.items())
async def test_a_prefix_ends_at_a_slash(path: str, app: str, flask_app: Flask, quart_app: Quart, serve: Serve) -> None:
    client = await serve(mount(flask_app, quart_app), follow_redirects=True)
    target = httpx.URL(str(client.base_url)).copy_with(raw_path=path.encode())
    assert (await client.get(target)).json()["app"] == app


async def test_several_prefixes_are_those_of_one_app(flask_app: Flask, quart_app: Quart, serve: Serve) -> None:
    @quart_app.get("/ask")
    async def ask() -> dict[str, str]:
        return {"app": "quart"}

    client = await serve(mount(flask_app, quart_app, prefix=["/v1/", "/ask"]))
    answers = [(await client.get(path)).json()["app"] for path in ("/v1/x", "/ask", "/asked")]
    assert answers == ["quart", "quart", "flask"]


@pytest.mark.parametrize("prefix", ["", "/", "v1", [], ["/v1", ""]])
def test_a_prefix_that_is_none_is_refused(prefix: Any, flask_app: Flask, quart_app: Quart) -> None:
    with pytest.raises(ConfigurationError, match="prefix="):
        mount(flask_app, quart_app, prefix=prefix)


def test_no_threads_are_refused(flask_app: Flask, quart_app: Quart) -> None:
    with pytest.raises(ConfigurationError, match="threads="):
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
    scope = {"type": "http", "method": "POST", "path": "/half", "query_string": b"", "headers": headers}
    await mount(flask_app, quart_app)({**scope, "http_version": "1.1"}, receive, send)
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
    scope = {"type": "http", "method": "POST", "path": "/beacon", "query_string": b"", "headers": headers}
    await mount(flask_app, quart_app)({**scope, "http_version": "1.1"}, receive, send)
    assert received == [b"seen"]


async def test_who_leaves_while_flask_computes_is_sent_nothing(flask_app: Flask, quart_app: Quart) -> None:
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

    scope = {"type": "http", "method": "GET", "path": "/slow", "query_string": b"", "headers": [(b"host", b"a")]}
    await mount(flask_app, quart_app)({**scope, "http_version": "1.1"}, receive, send)
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
    # HTTP/2 may send each cookie in a header of its own.
    headers = [("Cookie", "a=1"), ("Cookie", "session=x.y-z")]
    async with below_old(mount(flask_app, quart_app), "") as client:
        page = (await client.get("/caf%C3%A9?q=%C3%BC&r=1", headers=headers)).json()
    assert page["path"] == "/café"
    assert page["query"] == "q=%C3%BC&r=1"
    assert page["cookies"] == {"a": "1", "session": "x.y-z"}


def below_old(app: ASGIApp, root_path: str = "/old") -> httpx.AsyncClient:
    """A client of the app, as a server sees it that is at *root_path*."""
    transport = httpx.ASGITransport(app=app, root_path=root_path)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://old")


async def connect(app: ASGIApp, path: str) -> list[str]:
    """What a server is told of a websocket."""
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
    """A view of Flask's whose response has no end."""

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
            time.sleep(0.001)


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
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        if (message := next(messages, None)) is None:
            await asyncio.Event().wait()
        assert message
        return message

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            begun.set()
            if stalled:
                await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "path": "/endless", "query_string": b"", "headers": [(b"host", b"a")]}
    request = asyncio.ensure_future(mount(flask_app, quart_app)({**scope, "http_version": "1.1"}, receive, send))
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
    scope = {"type": "http", "method": "POST", "path": "/up", "query_string": b"", "headers": headers}
    request = asyncio.ensure_future(mount(flask_app, quart_app)({**scope, "http_version": "1.1"}, receive, send))
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(request, 10)
