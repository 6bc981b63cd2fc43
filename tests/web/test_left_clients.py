"""What a server's `send` raises once the client has left, and what it raises for another reason."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anyio
import pytest

from quart_openai_sse.testing import ScriptedUpstream, chunk, finish
from tests.conftest import ANN, QUESTION, CreateApp

BODY = json.dumps({"model": "scripted", "messages": QUESTION, "stream": True}).encode()
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/v1/chat/completions",
    "raw_path": b"/v1/chat/completions",
    "query_string": b"",
    "root_path": "",
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 80),
    "extensions": {},
    "headers": [
        (b"authorization", ANN["Authorization"].encode()),
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
    ],
}
UVLOOPS = "unable to perform operation on <TCPTransport closed=True reading=False 0x1>; the handler is closed"

LEFT = {
    "reset": (ConnectionResetError(), False),
    "broken pipe": (BrokenPipeError(), False),
    "anyio": (anyio.ClosedResourceError(), False),
    "anyio, broken": (anyio.BrokenResourceError(), False),
    "uvicorn on uvloop": (RuntimeError(UVLOOPS), False),
    "the server says so": (RuntimeError("The response is over."), True),
}
STILL_THERE = {
    "another error": RuntimeError("Response content longer than Content-Length"),
    "the disk is full": OSError(28, "No space left on device"),
    "a mistake": TypeError("a bytes-like object is required"),
}


class Failing:
    """A server whose `send` raises *error* for the second piece of a body. If *left*, it says that the client left."""

    def __init__(self, error: Exception, *, left: bool = False) -> None:
        self.error = error
        self.left = left
        self.failed = asyncio.Event()
        self.sent: list[Any] = []
        self._body = [{"type": "http.request", "body": BODY, "more_body": False}]

    async def receive(self) -> Any:
        if self._body:
            return self._body.pop()
        await (self.failed if self.left else asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if len(self.sent) == 2:
            self.failed.set()
            raise self.error
        self.sent.append(message)


@pytest.mark.parametrize("log_responses", [True, False])
@pytest.mark.parametrize(("error", "left"), LEFT.values(), ids=LEFT)
async def test_a_server_whose_client_has_left_gets_no_error_to_log(
    create_app: CreateApp, caplog: pytest.LogCaptureFixture, log_responses: bool, error: Exception, left: bool
) -> None:
    upstream = ScriptedUpstream([chunk("one"), chunk("two"), finish()])
    app, _ = create_app(upstream, log_responses=log_responses)
    async with app.test_app():
        server = Failing(error, left=left)
        await app(SCOPE, server.receive, server.send)  # type: ignore[arg-type]
    assert len(server.sent) == 2
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("log_responses", [True, False])
@pytest.mark.parametrize("error", STILL_THERE.values(), ids=STILL_THERE)
async def test_another_failure_of_a_server_stays_an_error(
    create_app: CreateApp, log_responses: bool, error: Exception
) -> None:
    app, _ = create_app(ScriptedUpstream("one two"), log_responses=log_responses)
    async with app.test_app():
        server = Failing(error)
        with pytest.raises((type(error), ExceptionGroup)) as raised:
            await app(SCOPE, server.receive, server.send)  # type: ignore[arg-type]
    found = raised.value
    if isinstance(found, ExceptionGroup):
        (found,) = found.exceptions
    assert error in (found, found.__context__)  # Quart 0.23 has an error of its own in place of an OSError


@pytest.mark.parametrize("log_responses", [True, False])
async def test_an_error_of_the_app_is_not_taken_for_a_client_that_left(
    create_app: CreateApp, log_responses: bool
) -> None:
    app, _ = create_app(ScriptedUpstream(), log_responses=log_responses)

    @app.post("/own")
    async def own() -> Any:
        async def body() -> Any:
            yield b"one"
            raise ConnectionResetError("the app's database")

        return body()

    server = Failing(AssertionError("never sent"))
    with pytest.raises((ConnectionResetError, ExceptionGroup)):
        await app({**SCOPE, "path": "/own", "raw_path": b"/own"}, server.receive, server.send)  # type: ignore[arg-type]
