"""Quart and httpx: line by line, parsed and written again."""

import json
import os
from collections.abc import AsyncIterator

import httpx
from quart import Quart, Response, request

app = Quart(__name__)
client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None, max_keepalive_connections=1000))
headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}


@app.post("/v1/chat/completions")
async def chat() -> Response:
    body = await request.get_json()

    async def events() -> AsyncIterator[str]:
        url = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
        async with client.stream("POST", url, json=body, headers=headers) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    yield "data: [DONE]\n\n"
                    continue
                chunk = json.loads(data)
                yield f"data: {json.dumps(chunk)}\n\n"

    response = Response(events(), content_type="text/event-stream")
    response.timeout = None
    return response
