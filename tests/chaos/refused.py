"""App models over libraries that their provider refuses: what the caller's SDK sees, and how often each one asks."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from quart import Quart, request

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.testing import serve_app
from tests.chaos.builds import Case, Figures, measure, staged, table
from tests.chaos.libraries import installed
from tests.chaos.refused_models import KEY, LIBRARIES, PACKAGES
from tests.chaos.sdk_models import NOTHING_SENT
from tests.raw import Peer, raw_upstream

REFUSALS = {
    "429": (b"Too Many Requests\r\nRetry-After: 1", "Slow down.", "rate_limit_exceeded"),
    "500": (b"Internal Server Error", "The GPU fell off the bus.", "server_error"),
    "400": (b"Bad Request", "The prompt is too long.", "invalid_request_error"),
    "401": (b"Unauthorized", f"This key is wrong: {KEY}", "authentication_error"),
}
"""What the provider does, by the last word of the question: its head, message and type."""

TRUE = {"429": ("RateLimitError", 429), "500": ("InternalServerError", 502), "400": ("BadRequestError", 400)}
TRUE["401"] = ("InternalServerError", 502)
"""What the caller's SDK is to raise."""

COLUMNS = ("status", "class", "code", "Retry-After", "x-should-retry", "asked", "upstream", "seconds")


async def answer(peer: Peer) -> None:
    """Refuses as the question says, with an error that OpenAI's, Anthropic's and Google's SDKs can read."""
    [way] = [each for each in REFUSALS if f"Refuse with {each}.".encode() in peer.body]
    head, message, kind = REFUSALS[way]
    error = {"message": message, "type": kind, "param": None, "code": None}
    body = json.dumps({"type": "error", "error": error}).encode()
    await peer.send(
        b"HTTP/1.1 %b %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (way.encode(), head, len(body), body)
    )


async def refused(library: str) -> Figures:
    """What the caller's SDK, with its own retries, sees of each refusal."""
    from openai import AsyncOpenAI

    asked = 0
    async with raw_upstream(answer) as upstream:
        app = Quart(__name__)
        ai = QuartOpenAISSE(app, auth=bearer_tokens({"token-ann": "ann"}), base_url=upstream.base_url, retries=0)
        ai.model("library")(LIBRARIES[library](upstream.base_url, ai))

        @app.before_request
        async def count() -> None:
            nonlocal asked
            asked += "Authorization" in request.headers  # a request through `ai.transport` has none

        figures: Figures = {}
        async with serve_app(app) as address, AsyncOpenAI(base_url=f"http://{address}/v1", api_key="token-ann") as sdk:
            for way in REFUSALS:
                asked, began = 0, time.monotonic()
                upstream.requests.clear()
                seen = await _seen(sdk, f"Refuse with {way}.")
                counts = {"asked": asked, "upstream": len(upstream.requests)}
                figures[way] = {**seen, **counts, "seconds": time.monotonic() - began}
    return figures


async def _seen(sdk: Any, question: str) -> Figures:
    from openai import APIError

    try:
        messages = [{"role": "user", "content": question}]
        async for _ in await sdk.chat.completions.create(model="library", messages=messages, stream=True):
            pass
    except APIError as error:
        response: Any = getattr(error, "response", None)
        headers = {} if response is None else response.headers
        return {
            "status": getattr(error, "status_code", None),
            "class": type(error).__name__,
            "code": error.code,
            "Retry-After": headers.get("retry-after"),
            "x-should-retry": headers.get("x-should-retry"),
            "key told": KEY in json.dumps(error.body),
        }
    return {"class": "none"}


CASES: Mapping[str, Case] = {library: partial(refused, library) for library in LIBRARIES}


async def run(write: Callable[[str], object], packages: Sequence[Path], *, cache: Path | None) -> bool:
    """Prints the table; whether in the last build each refusal is told truly, and the caller asks once."""
    with ExitStack() as stack:
        folder = cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        python = await asyncio.to_thread(installed, folder, PACKAGES, write)
        options: Any = {"at_once": 2, "patience": 300, "python": python, "environment": NOTHING_SENT}
        figures = [
            (build.name, _by_refusal(await measure("refused", list(CASES), build, **options)))
            for build in stack.enter_context(staged(packages))
        ]
    write("What openai's SDK sees of a model whose library is refused, and how often app and provider are asked\n\n")
    for line in table("library, refusal", COLUMNS, figures):
        write(f"{line}\n")
    _, last = figures[-1]
    right = [case for case, each in last.items() if _is_right(case, each)]
    write(f"\n{len(right)} of {len(last)} refusals are told truly, and the app is asked once\n")
    return len(right) == len(last)


def _by_refusal(figures: Mapping[str, Figures]) -> dict[str, Figures]:
    return {
        f"{library}, {way}": each if "error" in each else each[way]
        for library, each in figures.items()
        for way in REFUSALS
    }


def _is_right(case: str, figures: Figures) -> bool:
    way = case.rpartition(" ")[2]
    truly = (figures.get("class"), figures.get("status")) == TRUE[way] and not figures.get("key told")
    return truly and figures.get("x-should-retry") == "false" and figures.get("asked") == 1
