"""Quart and httpx: the bytes as they come."""

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

    async def events() -> AsyncIterator[bytes]:
        url = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
        async with client.stream("POST", url, json=body, headers=headers) as response:
            async for data in response.aiter_raw():
                yield data

    response = Response(events(), content_type="text/event-stream")
    response.timeout = None
    return response
