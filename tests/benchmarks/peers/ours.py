"""The extension with everything that is on by default, and with switches for what each feature costs."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from quart import Quart

import quart_openai_sse
from quart_openai_sse import QuartOpenAISSE, allow_anonymous, bearer_tokens

switches = set(os.environ.get("BENCHMARK_SWITCHES", "").split())
logging.basicConfig(level=logging.WARNING if "no-log-lines" in switches else logging.INFO)

# The harness reads this line: each process must run the build that is measured.
sys.stderr.write(f"quart_openai_sse is {quart_openai_sse.__file__}\n")

app = Quart(__name__)
app.config.from_prefixed_env()
ai = QuartOpenAISSE(
    app,
    auth=allow_anonymous() if "no-auth" in switches else bearer_tokens({os.environ["TOKEN"]: "alice"}),
    log_responses="no-response-log" not in switches,
    max_streams=10_000,
    max_streams_per_principal=10_000,
    max_connections=10_000,
    max_keepalive_connections=1000,
    retries=0,
)

if "on-end" in switches:

    @ai.on_end
    async def on_end(end: Any) -> None:
        assert end.message is not None or end.outcome != "completed"


if "transform" in switches:

    @ai.transform
    async def transform(chunks: AsyncIterator[Any], _: Any) -> AsyncIterator[Any]:
        async for chunk in chunks:
            yield chunk


if "app-model" in switches:

    @ai.model("app")
    async def app_model(chat: Any) -> AsyncIterator[Any]:
        async for chunk in chat.call("gpt-4o-mini", chat.messages):
            yield chunk


if "paced-model" in switches:

    @ai.model("paced")
    async def paced_model(_: Any) -> AsyncIterator[str]:
        until, place = time.monotonic() + float(os.environ["BENCHMARK_SECONDS"]), 0
        while time.monotonic() < until:
            await asyncio.sleep(0.05)
            place += 1
            yield f"@{place}@{time.monotonic_ns()}@"
