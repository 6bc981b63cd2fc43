"""The app behind the proxies: its user has a session's cookie, and its model writes when a check says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from quart import Quart, session

from quart_openai_sse import QuartOpenAISSE, session_user

MODEL = "waiting"


@dataclass
class Answer:
    """An answer that the model writes."""

    texts: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    """What it writes next; "" is its end."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is written, or cancelled."""


def create_app() -> tuple[Quart, asyncio.Queue[Answer]]:
    """The app, and the answers that its model has begun."""
    app = Quart(__name__)
    app.secret_key = "secret"
    # No comments: they would be events, too, with which a proxy may notice that a client has left.
    ai = QuartOpenAISSE(app, auth=session_user("user"), base_url="http://127.0.0.1:9/v1", keepalive=0)
    answers: asyncio.Queue[Answer] = asyncio.Queue()

    @ai.model(MODEL)
    async def waiting(chat: Any) -> AsyncIterator[str]:
        answer = Answer()
        answers.put_nowait(answer)
        try:
            while text := await answer.texts.get():
                yield text
        finally:
            answer.over.set()

    @app.get("/login")
    async def login() -> str:
        session["user"] = "ann"
        return ""

    return app, answers
