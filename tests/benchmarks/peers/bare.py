"""A bare Quart stream that asks nobody: what Quart and its server take by themselves.

The request says how many events, and the seconds between two of them.
"""

import asyncio
import time
from collections.abc import AsyncIterator

from quart import Quart, Response, request

app = Quart(__name__)
EVENT = (
    'data: {"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk","created":1741570283,'
    '"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_06737a9306",'
    '"choices":[{"index":0,"delta":{"content":"@%d@%d@"},"logprobs":null,"finish_reason":null}]}\n\n'
)


@app.post("/v1/chat/completions")
async def chat() -> Response:
    body = await request.get_json()
    until = time.monotonic() + body["seconds"]

    async def events() -> AsyncIterator[bytes]:
        for place in range(1, body["events"] + 1):
            await asyncio.sleep(body["gap"])
            if time.monotonic() > until:
                break
            yield (EVENT % (place, time.monotonic_ns())).encode()
        yield b"data: [DONE]\n\n"

    response = Response(events(), content_type="text/event-stream")
    response.timeout = None
    return response
