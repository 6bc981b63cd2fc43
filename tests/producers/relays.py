"""A relay without Quart around it, for tests in which a reader does not read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.logs import Reader
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.principal import Principal
from quart_openai_sse.protocol import json
from quart_openai_sse.relay.hooks import Hooks
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.running import StreamHandle
from quart_openai_sse.testing import ScriptedUpstream
from tests.conftest import QUESTION

BODY = {"model": "own", "messages": QUESTION, "stream": True}


@asynccontextmanager
async def relay_of(
    model: Any,
    upstream: ScriptedUpstream | None = None,
    *,
    transforms: Sequence[Any] = (),
    on_end: Any = None,
    **options: Any,
) -> AsyncIterator[Relay]:
    """A relay with the model "own". Its log has room for one item: a model waits at each `yield` for the reader."""
    hooks = Hooks(transforms=list(transforms), on_end=[on_end] if on_end else [])
    hooks.app_models["own"] = model
    config = Config(base_url="http://127.0.0.1:9/v1", **options)
    scripted = upstream or ScriptedUpstream()
    relay = Relay(config=config, log=MemoryLog(high_water=1), create_upstream=lambda: scripted, hooks=hooks)
    yield relay
    await relay.aclose()


async def start(relay: Relay) -> tuple[StreamHandle, Reader]:
    """A stream of the model "own" that only its first reader can read."""
    handle = await relay.start(BODY, principal=Principal("me"), retain=False)
    assert handle.reader is not None
    return handle, handle.reader


async def read_all(reader: Reader) -> tuple[str, str]:
    """The text of a stream, and its outcome with the error's code or the reason."""
    text = ""
    async for batch in reader:
        for entry in batch.entries:
            text += "".join(choice["delta"].get("content") or "" for choice in json.decode(entry.data)["choices"])
        if batch.end is not None:
            end = batch.end
    return text, f"{end.outcome} {end.error.code if end.error else end.reason}".strip()
