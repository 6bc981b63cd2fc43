"""The app that each server serves: that of docs/how-to/deploy.md, with the upstream's client to be chosen."""

from __future__ import annotations

import os

import httpx
import httpx2
from quart import Quart, request

from quart_openai_sse import Principal, QuartOpenAISSE, bearer_tokens, first_of

CLIENTS = {"httpx": httpx.AsyncClient, "httpx2": httpx2.AsyncClient}


async def token_in_the_address() -> Principal | None:
    """For `EventSource`, which can't send a header. A real app has a cookie."""
    known = request.args.get("token") == os.environ["MATRIX_TOKEN"]
    return Principal("alice", realm="token", cookie=False) if known else None


app = Quart(__name__)
app.config.from_prefixed_env()
ai = QuartOpenAISSE(
    app,
    auth=first_of(bearer_tokens({os.environ["MATRIX_TOKEN"]: "alice"}), token_in_the_address),
    client=lambda _: CLIENTS[os.environ["MATRIX_UPSTREAM_CLIENT"]](),
)
