"""Streams that a transform stops, of app models over libraries: when the request upstream ends, and what is left."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from quart import Quart

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.errors import StreamStopped
from quart_openai_sse.testing import serve_app
from tests.chaos.builds import Case, Figures, measure, staged, table
from tests.chaos.sdk_models import LIBRARIES, NOTHING_SENT, PACKAGES
from tests.raw import END, HEAD, Peer, chunked, raw_upstream

ITEMS = 6
"""The transform stops the stream after so many."""
WORDS, PAUSE = 400, 0.05
"""What the upstream sends: a word after each pause, 20 seconds in all."""
PATIENCE = 6.0
"""Seconds in which the request upstream should end."""
OURS = ("quart>=0.22,<0.24", "hypercorn>=0.17", "httptools>=0.6.4", "httpx>=0.28,<0.29", "msgspec>=0.19", "click>=8.2")
"""What the package itself needs."""
SHORT, LONG = "Short, please.", "Long, please."


# The upstream -------------------------------------------------------------------------------------------------------


async def answer(peer: Peer) -> None:
    """Sends an answer as long as the question asks for, in the format of the path. Stops when the peer has gone."""
    words = 3 if SHORT.encode() in peer.body else WORDS
    gone = asyncio.ensure_future(peer.gone())
    try:
        await peer.send(HEAD)
        for data in _events(peer.head.split(b" ", 2)[1].decode(), words):
            await asyncio.wait({gone}, timeout=PAUSE)
            if gone.done():
                return
            await peer.send(chunked(data))
        await peer.send(END)
    finally:
        gone.cancel()


def _events(path: str, words: int) -> list[bytes]:
    if "GenerateContent" in path:
        parts: list[dict[str, Any]] = [
            {"content": {"role": "model", "parts": [{"text": "word "}]}, "index": 0} for _ in range(words)
        ]
        parts[-1]["finishReason"] = "STOP"
        return [_event({"candidates": [part]}) for part in parts]
    if path.endswith("/responses"):
        delta = {"type": "response.output_text.delta", "item_id": "1", "output_index": 0, "content_index": 0}
        end = {
            "type": "response.completed",
            "response": {"id": "1", "object": "response", "status": "completed", "output": []},
        }
        return [*[_event({**delta, "delta": "word "})] * words, _event(end)]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *[{"content": "word "}] * words]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o"}
    return [*(_event({**chunk, "choices": [choice]}) for choice in choices), b"data: [DONE]\n\n"]


def _event(data: dict[str, Any]) -> bytes:
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


# One library --------------------------------------------------------------------------------------------------------


@dataclass
class Stopping:
    """The transform that stops streams."""

    at: float = 0.0
    """When it did."""
    seen: list[Any] = field(default_factory=list)

    async def __call__(self, chunks: AsyncIterator[Any], chat: Any) -> AsyncIterator[Any]:
        items = 0
        async for each in chunks:
            yield each
            items += 1
            if items == ITEMS and chat.messages[-1]["content"] == LONG:
                self.at = time.monotonic()
                raise StreamStopped("enough")


async def stopped(library: str) -> Figures:
    """When the request of a library's model ends after a transform has stopped the stream, and which tasks are left."""
    stopping = Stopping()
    async with raw_upstream(answer) as upstream:
        app = Quart(__name__)
        ai = QuartOpenAISSE(app, auth=bearer_tokens({"token-ann": "ann"}), base_url="http://127.0.0.1:9/v1")
        ai.model("library")(LIBRARIES[library](upstream.base_url))

        @ai.transform
        async def stop(chunks: AsyncIterator[Any], chat: Any) -> AsyncIterator[Any]:
            async for each in stopping(chunks, chat):
                yield each

        async with serve_app(app) as address:
            whole = await asyncio.to_thread(_ask, address, SHORT)  # what is made once is made now
            before = asyncio.all_tasks()
            cut = await asyncio.to_thread(_ask, address, LONG)
            peer = upstream.requests[-1]
            await asyncio.sleep(1)
            tasks = Counter(map(_name, filter(_is_foreign, asyncio.all_tasks() - before)))
            closed = await _closed(peer, stopping.at + PATIENCE)
            collected = "" if closed is not None else await _after_collection(peer)
    return {
        "answers": f"{whole}, {cut}",
        "in time": closed is not None,
        "closed": f"{max(0.0, closed - stopping.at):.2f} s" if closed is not None else f"not in {PATIENCE:g} s",
        "gc.collect()": collected,
        "tasks left": ", ".join(f"{count} x {name}" for name, count in tasks.items()) or "none",
    }


async def _closed(peer: Peer, deadline: float) -> float | None:
    """When the peer closed its connection."""
    while peer.left is None and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return peer.left


async def _after_collection(peer: Peer) -> str:
    gc.collect()
    return "closes it" if await _closed(peer, time.monotonic() + 1) else "does not"


def _is_foreign(task: asyncio.Task[Any]) -> bool:
    """Whether a task is not one of this measurement, its upstream or its server."""
    code = getattr(task.get_coro(), "cr_code", None)
    return code is None or not any(name in code.co_filename for name in ("/tests/", "/hypercorn/", "loopback.py"))


def _name(task: asyncio.Task[Any]) -> str:
    coroutine = task.get_coro()
    return getattr(coroutine, "__qualname__", type(coroutine).__name__)


def _ask(address: str, question: str) -> str:
    """The end of the stream."""
    connection = http.client.HTTPConnection(address, timeout=30)
    headers = {"Authorization": "Bearer token-ann", "Content-Type": "application/json", "Connection": "close"}
    body = {"model": "library", "messages": [{"role": "user", "content": question}], "stream": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse().read()
    connection.close()
    return "completed" if b"[DONE]" in response else response.rpartition(b'"code":"')[2].partition(b'"')[0].decode()


# Print --------------------------------------------------------------------------------------------------------------

CASES: Mapping[str, Case] = {library: partial(stopped, library) for library in LIBRARIES}


async def run(write: Callable[[str], object], packages: Sequence[Path], *, cache: Path | None) -> bool:
    """Prints the table; whether in the last build every request upstream ended in time."""
    with ExitStack() as stack:
        folder = cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        python = await asyncio.to_thread(installed, folder, PACKAGES, write)
        figures = [
            (
                build.name,
                await measure("libraries", list(CASES), build, at_once=3, python=python, environment=NOTHING_SENT),
            )
            for build in stack.enter_context(staged(packages))
        ]
    write(f"A transform stops the stream after {ITEMS} items: when the upstream's connection was closed, what\n")
    write("gc.collect() does to one that was not, and the tasks that are left a second after the end\n\n")
    for line in table("library", ("answers", "closed", "gc.collect()", "tasks left"), figures):
        write(f"{line}\n")
    _, last = figures[-1]
    closed = [library for library, each in last.items() if each.get("in time")]
    write(f"\n{len(closed)} of {len(last)} libraries closed their request\n")
    return len(closed) == len(last)


def installed(folder: Path, packages: Sequence[str], write: Callable[[str], object]) -> Path:
    """The interpreter of an environment in *folder* that has the *packages*. It is made at the first time."""
    python, listed = folder / "venv/bin/python", folder / "packages.txt"
    names = "\n".join((*packages, *OURS))
    if not listed.exists() or listed.read_text() != names:
        write(f"Installing {len(packages)} packages in {folder}\n")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages, *OURS], check=True)
        listed.write_text(names)
    return python
