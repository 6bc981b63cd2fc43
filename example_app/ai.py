"""Streaming AI, added: the extension, a route that asks, what is stored of the answer."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from quart import Blueprint, Quart, request, url_for
from quart.typing import ResponseReturnValue

from example_app.accounts import Conversations
from example_app.handbook import add_handbook
from quart_openai_sse import QuartOpenAISSE, StreamEnd, bearer_tokens, first_of, quart_auth_user
from quart_openai_sse.errors import InvalidRequest
from quart_openai_sse.requests import parse_body

conversations = Conversations()


def create_ai(app: Quart) -> QuartOpenAISSE:
    """Adds the extension to *app*: who is logged in on the page may ask, and who has `EXAMPLE_TOKEN`."""
    model = os.environ.get("OPENAI_MODEL") or ("sim" if app.config["SIMULATED"] else "gpt-5-mini")
    app.config.setdefault("OPENAI_SSE_MODEL", model)
    if not app.config["SIMULATED"]:
        app.config.setdefault("OPENAI_SSE_MODELS", [model])

    tokens = {token: "api" for token in [os.environ.get("EXAMPLE_TOKEN")] if token}
    ai = QuartOpenAISSE(auth=first_of(bearer_tokens(tokens), quart_auth_user()))
    ai.init_app(app)
    add_handbook(ai, model)

    @ai.on_end
    async def store(end: StreamEnd) -> None:
        conversation = conversations.of(str(end.principal))
        if conversation.thread != end.thread:
            return  # asked by an API client, or the conversation was begun anew meanwhile
        answer: dict[str, Any] = {"role": "assistant", "content": end.text, "outcome": end.outcome}
        if end.error is not None:
            answer["note"] = end.error.user_message
        answer["sources"] = next((data for name, data in end.events if name == "sources"), [])
        conversation.messages.append(answer)

    app.jinja_env.globals.update(
        models=[
            {"id": model, "label": f"Plain model ({model})"},
            {"id": "handbook", "label": "Handbook, with sources"},
        ],
        simulated=app.config["SIMULATED"],
        upstream=urlsplit(ai.config(app).base_url).netloc,
    )

    return ai


def messages(ai: QuartOpenAISSE) -> Blueprint:
    """The conversation's own routes: what was said, a question, a new beginning."""
    blueprint = Blueprint("messages", __name__)

    @blueprint.get("/messages")
    async def past() -> ResponseReturnValue:
        me = await ai.principal()
        conversation = conversations.of(str(me))
        return {"thread": conversation.thread, "messages": conversation.messages}

    @blueprint.post("/messages")
    async def ask() -> ResponseReturnValue:
        me = await ai.principal()
        asked = parse_body(await request.data, content_type=request.headers.get("Content-Type", ""))
        content = asked.get("content")
        if not isinstance(content, str) or not content.strip():
            raise InvalidRequest("content must be a question in words.", param="content")
        conversation = conversations.of(str(me))
        question = {"role": "user", "content": content}
        body = {"model": asked.get("model"), "messages": [*conversation.for_model(), question]}
        stream = await ai.start(body, principal=me, thread=conversation.thread)
        conversation.messages.append(question)
        return {"id": stream.id, "url": url_for("openai_sse.read_stream", stream_id=stream.id)}, 201

    @blueprint.post("/reset")
    async def reset() -> ResponseReturnValue:
        me = await ai.principal()
        return {"thread": conversations.reset(str(me)).thread}

    return blueprint
