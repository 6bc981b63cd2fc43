"""Quart and Redis as tutorials show it: an XADD for each chunk, and for each reader an XREAD BLOCK of its own.

It runs on any number of workers: every one of them can serve every stream.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
from quart import Quart, Response, request
from redis.asyncio import Redis

app = Quart(__name__)
client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None, max_keepalive_connections=1000))
headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
# A reader that waits has a connection for itself, and redis-py refuses the 101st by default.
redis = Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, max_connections=10_000, socket_timeout=None)
producers: set[asyncio.Task[None]] = set()


@app.post("/v1/chat/completions")
async def chat() -> Response:
    key = f"stream:{uuid.uuid4().hex}"
    producer = asyncio.create_task(produce(key, await request.get_json()))
    producers.add(producer)
    producer.add_done_callback(producers.discard)
    return streamed(key)


@app.get("/v1/streams/<key>")
async def resume(key: str) -> Response:
    return streamed(key)


async def produce(key: str, body: Any) -> None:
    url = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
    async with client.stream("POST", url, json=body, headers=headers) as response:
        async for line in response.aiter_lines():
            if line:
                await redis.xadd(key, {"line": line})
    await redis.expire(key, 300)


def streamed(key: str) -> Response:
    async def events() -> AsyncIterator[str]:
        place: Any = "0"
        while True:
            for _, entries in await redis.xread({key: place}, block=15_000):
                for place, fields in entries:
                    yield f"id: {place}\n{fields['line']}\n\n"
                    if fields["line"] == "data: [DONE]":
                        return

    response = Response(events(), content_type="text/event-stream", headers={"X-Stream-Id": key})
    response.timeout = None
    return response
