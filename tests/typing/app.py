"""An app that uses every hook, with the types that its author writes: mypy and pyright find nothing wrong with it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

from quart import Quart
from quart.typing import ResponseReturnValue

from quart_openai_sse import (
    Chat,
    Event,
    Principal,
    QuartOpenAISSE,
    StreamEnd,
    StreamEvent,
    bearer_tokens,
    first_of,
    session_user,
)
from quart_openai_sse.errors import OpenAISSEError, PermissionDenied
from quart_openai_sse.formats import Reading, SSEFormat, entry_text
from quart_openai_sse.logs import Batch, End
from quart_openai_sse.protocol.sse import ServerSentEvent, encode

app = Quart(__name__)
auth = first_of(bearer_tokens({"s3cret": "alice"}), session_user())
ai = QuartOpenAISSE(app, auth=auth, model="support", models=["gpt-5-mini"], keepalive=5, api_key="sk-example")
answers: dict[str, str] = {}


@ai.model("support")
async def support(chat: Chat) -> AsyncIterator[str | Event | dict[str, Any]]:
    yield Event("sources", ["handbook.md"])
    async for chunk in chat.call("gpt-5-mini", chat.messages):
        yield chunk
    yield "."


@ai.prepare
async def prepare(body: dict[str, Any], principal: Principal) -> dict[str, Any]:
    if principal.id == "mallory":
        raise PermissionDenied("This account has no answers left.")
    return {**body, "max_completion_tokens": 1000}


@ai.transform
async def number(items: AsyncIterator[Any], chat: Chat) -> AsyncIterator[Any]:
    count = 0
    async for item in items:
        count += 1
        yield item
    yield Event("items", {"count": count, "for": str(chat.principal)})


@ai.on_end
async def store(end: StreamEnd) -> None:
    answers[end.thread or end.id] = end.text


@ai.observe
def watch(event: StreamEvent) -> None:
    logging.getLogger("app").info("%s: %s", event.kind, event.record.id)


@ai.format("lines")
class Lines:
    headers = {"Content-Type": "application/x-ndjson"}
    heartbeat = b"\n"
    replays = False
    sharing = None

    def __init__(self, reading: Reading) -> None:
        self.id = reading.about.id

    def head(self) -> bytes:
        return self.id.encode() + b"\n"

    def encode(self, batch: Batch) -> bytes:
        return b"".join(entry.data + b"\n" for entry in batch.entries)

    def end(self, end: End) -> bytes:
        return end.outcome.encode()

    def refusal(self, error: OpenAISSEError) -> tuple[bytes, str]:
        return error.message.encode(), "text/plain; charset=utf-8"


@ai.format("html")
class HTML(SSEFormat):
    sharing = "html"

    def encode(self, batch: Batch) -> bytes:
        return b"".join(encode(ServerSentEvent(entry_text(entry))) for entry in batch.entries)

    def end(self, end: End) -> bytes:
        return encode(ServerSentEvent(event=end.outcome))


@app.post("/ask")
async def ask() -> ResponseReturnValue:
    me = await ai.principal()
    stream = await ai.start(await ai.body(), principal=me, thread="chat", metadata={"page": 1})
    return await stream.response()


@app.get("/ask")
async def resume() -> ResponseReturnValue:
    stream = await ai.active(thread="chat", principal=await ai.principal())
    return {"answer": answers.get("chat")} if stream is None else await stream.response(format="text", after="")


@app.post("/words")
async def words() -> ResponseReturnValue:
    stream = await ai.start(await ai.body(), principal=await ai.principal())
    async with stream.events() as items:
        return {"words": [item.text async for item in items if item.text]}


@app.post("/title")
async def title() -> ResponseReturnValue:
    message = await ai.complete(await ai.body(), principal=await ai.principal())
    return {"title": message["content"]}


async def shut_down() -> None:
    await ai.drain(timeout=10, grace=0.5)


partners = ai.blueprint("partners", url_prefix="/partners", auth=bearer_tokens({"partner": "acme"}), routes={"chat"})
app.register_blueprint(partners)
