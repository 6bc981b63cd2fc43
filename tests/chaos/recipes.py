"""The recipes of docs/how-to/agent-libraries.md: how their streams end for each way in which an answer can break."""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from quart import Quart

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.testing import serve_app
from tests.chaos.builds import ROOT, Case, Figures, measure, staged, table
from tests.chaos.libraries import installed
from tests.chaos.sdk_models import NOTHING_SENT
from tests.raw import CLOSING_HEAD, HEAD, Hangup, Peer, chunked, raw_upstream

PAGE = ROOT / "docs/how-to/agent-libraries.md"
PACKAGES = (
    "anthropic==2.14.0",
    "langchain==1.5.2",
    "langchain-openai==1.7.4",
    "langgraph==1.2.24",
    "openai==3.57.0",
    "openai-agents==0.24.0",
    "pydantic-ai-slim[openai]==2.68.0",
)
WAYS = ("whole", "long", "cut", "broken", "unfinished", "reported", "refused")
"""What the upstream does, by the last word of the question."""
_REFUSAL = b'{"error": {"message": "Slow down.", "type": "rate_limit_exceeded"}}'
_REFUSED = b"HTTP/1.1 429 X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_REFUSAL) + _REFUSAL


def recipes() -> dict[str, str]:
    """The code of each recipe, by the name of its model."""
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    return {name[1]: code for code in found if (name := re.search(r'@ai\.model\("(\w+)"\)', code))}


# The upstream -------------------------------------------------------------------------------------------------------


async def answer(peer: Peer) -> None:
    """Answers as the question says, in the format of the path."""
    [way] = [each for each in WAYS if f"Break it: {each}.".encode() in peer.body]
    events = _messages(way) if b"/messages" in peer.head.split(b"\r\n")[0] else _chunks(way)
    if way == "refused":
        await peer.send(_REFUSED)
        return
    await peer.send(HEAD + chunked(events) if way == "broken" else CLOSING_HEAD + events)
    raise Hangup


def _chunks(way: str) -> bytes:
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-mini"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}

    def event(delta: dict[str, str], reason: str | None = None) -> bytes:
        return _event({**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    half = event({"role": "assistant", "content": ""}) + event({"content": "Half of "}) + event({"content": "an"})
    ends = {
        "whole": event({}, "stop") + _event({**chunk, "choices": [], "usage": usage}) + b"data: [DONE]\n\n",
        "long": event({}, "length") + _event({**chunk, "choices": [], "usage": usage}) + b"data: [DONE]\n\n",
        "unfinished": b"data: [DONE]\n\n",
        "reported": _event({"error": {"message": "The GPU fell off the bus.", "type": "server_error", "code": None}}),
    }
    return half + ends.get(way, b"")


def _messages(way: str) -> bytes:
    """Anthropic's events."""
    usage = {"input_tokens": 3, "output_tokens": 2}
    message = {"id": "1", "type": "message", "role": "assistant", "content": [], "model": "claude", "usage": usage}
    half = [
        {"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Half of an"}},
    ]

    def end(reason: str) -> list[dict[str, Any]]:
        delta = {"stop_reason": reason, "stop_sequence": None}
        return [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]

    ends: dict[str, list[dict[str, Any]]] = {
        "whole": end("end_turn"),
        "long": end("max_tokens"),
        "unfinished": [{"type": "message_stop"}],
        "reported": [{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}],
    }
    return b"".join(map(_event, half + ends.get(way, [])))


def _event(data: Mapping[str, Any]) -> bytes:
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


# One recipe ---------------------------------------------------------------------------------------------------------


async def broken(name: str) -> Figures:
    """How the streams of a recipe's model end."""
    ends: list[str] = []
    figures: Figures = {}
    async with raw_upstream(answer) as upstream:
        os.environ.update(ANTHROPIC_BASE_URL=upstream.base_url.removesuffix("/v1"), ANTHROPIC_API_KEY="no-key")
        app = Quart(__name__)
        ai = QuartOpenAISSE(app, auth=bearer_tokens({"token-ann": "ann"}), base_url=upstream.base_url, retries=0)
        exec(compile(recipes()[name], str(PAGE), "exec"), {"ai": ai})

        @ai.on_end
        async def note(end: Any) -> None:
            if end.model == name:
                ends.append(end.finish_reasons.get(0, "") if end.outcome == "completed" else end.outcome)

        headers = {"Authorization": "Bearer token-ann"}
        async with serve_app(app) as address, httpx.AsyncClient(timeout=30, headers=headers) as client:
            for way in WAYS:
                messages = [{"role": "user", "content": f"Break it: {way}."}]
                body = {"model": name, "messages": messages, "stream": True}
                await client.post(f"http://{address}/v1/chat/completions", json=body)
                figures[way] = " ".join(ends)
                ends.clear()
    return figures


# Print --------------------------------------------------------------------------------------------------------------

CASES: Mapping[str, Case] = {name: partial(broken, name) for name in (recipes() if PAGE.exists() else ())}


async def run(write: Callable[[str], object], packages: Sequence[Path], *, cache: Path | None) -> bool:
    """Prints the table; whether in the last build every answer that broke has failed its stream."""
    with ExitStack() as stack:
        folder = cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        python = await asyncio.to_thread(installed, folder, PACKAGES, write)
        figures = [
            (build.name, await measure("recipes", list(CASES), build, python=python, environment=NOTHING_SENT))
            for build in stack.enter_context(staged(packages))
        ]
    write("How the stream of each recipe ends: its finish_reason, or failed\n\n")
    for line in table("recipe", WAYS, figures):
        write(f"{line}\n")
    _, last = figures[-1]
    right = [name for name, each in last.items() if _is_right(each)]
    write(f"\n{len(right)} of {len(last)} recipes tell every answer that broke from a whole one\n")
    return len(right) == len(last)


def _is_right(figures: Figures) -> bool:
    # Some libraries have no reason for the end of an answer.
    whole = figures.get("whole") == "stop" and figures.get("long") in ("length", "stop")
    return whole and all(figures.get(way) == "failed" for way in WAYS[2:])
