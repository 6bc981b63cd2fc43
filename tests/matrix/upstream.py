"""The simulator, with models that wait for the client and models that break off.

`held` in a model's name: after the first token the stream waits until the client says that it has seen it, and so
after the second: what comes with the head of a response may pass where nothing else does.
`cut` in a model's name: after a few tokens the stream just ends.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from quart import Quart

from quart_openai_sse.simulator import Counters, create_simulator
from quart_openai_sse.simulator.loopback import serve_app

HELD_AFTER = (2, 3)  # events: the role and the first token; the second
CUT_AFTER = 5
PATIENCE = 20.0  # seconds

Gates = dict[str, asyncio.Semaphore]


@asynccontextmanager
async def serve_upstream() -> AsyncIterator[str]:
    """Gives its origin. `POST /release/<model>` lets a held stream go on, `GET /ended/<model>` waits for its end."""
    app = create_simulator(first_token_delay=0, tokens_per_second=0)
    gates: Gates = defaultdict(lambda: asyncio.Semaphore(0))
    _add_controls(app, gates)
    app.asgi_app = _Faults(app.asgi_app, gates)  # type: ignore[method-assign]
    async with serve_app(app) as address:
        yield f"http://{address}"


def _add_controls(app: Quart, gates: Gates) -> None:
    counters: Counters = app.extensions["simulator"]

    def ended(model: str) -> str | None:
        return next((each.outcome for each in counters.requests if each.model == model and each.closed), None)

    @app.post("/release/<model>")
    async def release(model: str) -> dict[str, Any]:
        gates[model].release()
        return {}

    @app.get("/ended/<model>")
    async def wait_for_end(model: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(PATIENCE):
                return {"outcome": await counters.until(lambda: ended(model))}
        except TimeoutError:
            return {"outcome": "running"}


class _Faults:
    """Holds and cuts the streams of models whose names ask for it."""

    def __init__(self, app: Any, gates: Gates) -> None:
        self._app = app
        self._gates = gates

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/chat/completions":
            return await self._app(scope, receive, send)
        body = await _read(receive)
        model = str(json.loads(body).get("model"))
        unread = [{"type": "http.request", "body": body, "more_body": False}]
        sent = 0

        async def receive_again() -> Any:
            return unread.pop() if unread else await receive()

        async def send_some(message: Any) -> None:
            nonlocal sent
            if message["type"] == "http.response.body":
                sent += 1
                if "-held" in model and sent - 1 in HELD_AFTER:
                    await self._gates[model].acquire()
                if "-cut" in model and sent >= CUT_AFTER:
                    message = {"type": "http.response.body", "body": b"", "more_body": False}
                    if sent > CUT_AFTER:
                        return
            await send(message)

        return await self._app(scope, receive_again, send_some)


async def _read(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body
