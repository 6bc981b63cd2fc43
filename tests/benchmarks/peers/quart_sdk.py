"""Quart and OpenAI's SDK."""

from collections.abc import AsyncIterator

from openai import AsyncOpenAI
from quart import Quart, Response, request

app = Quart(__name__)
client = AsyncOpenAI()


@app.post("/v1/chat/completions")
async def chat() -> Response:
    body = await request.get_json()
    stream = await client.chat.completions.create(model=body["model"], messages=body["messages"], stream=True)

    async def events() -> AsyncIterator[str]:
        async for chunk in stream:
            yield f"data: {chunk.model_dump_json()}\n\n"
        yield "data: [DONE]\n\n"

    response = Response(events(), content_type="text/event-stream")
    response.timeout = None
    return response
