"""The apps that the samples are sent through, and what their hooks and models were given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any

from quart import Quart

from quart_openai_sse import Config, Event, QuartOpenAISSE, StreamEnd, bearer_tokens
from tests.conftest import ANN, TOKENS
from tests.dialects.sample import SECRET
from tests.dialects.upstream import foreign_chunks

REDACTED, MASK = "[redacted]", "*"
"""What the transforms write instead of the secret, and instead of any text."""
LENIENT = "require_finish_reason"
"""The option that lets `[DONE]` end a stream without a finish reason."""
OPTIONS: dict[str, Any] = {
    "retries": 0,
    "commit_after": 30,
    "linger": 30,
    "max_streams_per_principal": 1000,
    "max_readers_per_principal": 1000,
    "log_responses": False,
}


@dataclass
class App:
    """One app, and what came of each request, by the request's `user`."""

    app: Quart
    ai: QuartOpenAISSE
    ends: dict[str, StreamEnd] = field(default_factory=dict)
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What `chat.call` gave the app's model: its message, usage and finish reason."""

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """The status and the body of a response."""
        headers = {**ANN, "Accept": "text/event-stream"}
        response = await self.app.test_client().post(path, json=body, headers=headers)
        return response.status_code, await response.get_data(as_text=False)


def has_lenient() -> bool:
    """Whether the product has the option `LENIENT`."""
    return any(each.name == LENIENT for each in fields(Config))


def create_app(base_url: str, *, transform: str = "", options: Mapping[str, Any] = {}) -> App:
    """An app before the upstream at *base_url*. *transform* is one of `TRANSFORMS`."""
    app = Quart(__name__)
    ai = QuartOpenAISSE(app, auth=bearer_tokens(TOKENS), base_url=base_url, **{**OPTIONS, **options})
    made = App(app, ai)
    _add_models(made, base_url)

    @ai.on_end
    async def keep(end: StreamEnd) -> None:
        made.ends[end.body.get("user", "")] = end

    if transform:
        ai.transform(TRANSFORMS[transform])
    return made


def _add_models(made: App, base_url: str) -> None:
    ai = made.ai

    @ai.model("passes-on")
    async def passes_on(chat: Any) -> AsyncIterator[Any]:
        call = chat.call(chat.body["metadata"]["models"], chat.messages)
        async for chunk in call:
            yield chunk
        made.calls[chat.body["user"]] = _given(call, call.message)

    @ai.model("awaits")
    async def awaits(chat: Any) -> AsyncIterator[Any]:
        call = chat.call(chat.body["metadata"]["models"], chat.messages)
        made.calls[chat.body["user"]] = _given(call, await call)
        yield "done"

    @ai.model("twice")
    async def twice(chat: Any) -> AsyncIterator[Any]:
        for model in chat.body["metadata"]["models"].split():
            async for chunk in chat.call(model, chat.messages):
                yield chunk

    @ai.model("other-client")
    async def other_client(chat: Any) -> AsyncIterator[Any]:
        for model in chat.body["metadata"]["models"].split():
            async for chunk in foreign_chunks(base_url, model):
                yield chunk


def _given(call: Any, message: dict[str, Any]) -> dict[str, Any]:
    return {"message": message, "usage": call.usage, "finish_reason": call.finish_reason}


async def _nothing(chunks: AsyncIterator[Any], _chat: Any) -> AsyncIterator[Any]:
    async for chunk in chunks:
        yield chunk


async def _redact(chunks: AsyncIterator[Any], _chat: Any) -> AsyncIterator[Any]:
    """Removes the secret from every place that the package knows."""
    async for chunk in chunks:
        yield _replaced(chunk, lambda text: text.replace(SECRET, REDACTED))


async def _mask(chunks: AsyncIterator[Any], _chat: Any) -> AsyncIterator[Any]:
    """Replaces all text, in every place that the package knows."""
    async for chunk in chunks:
        yield _replaced(chunk, lambda text: text and MASK)


def _replaced(chunk: Any, replace: Callable[[str], str]) -> Any:
    texts: Any = import_module("quart_openai_sse.protocol.texts")
    if isinstance(chunk, Event):
        return chunk
    for place in texts.places_of(chunk):
        text = texts.text_of(chunk, place)
        if (replaced := replace(text)) != text:
            chunk = texts.with_text(chunk, replaced, place=place)
    return chunk


TRANSFORMS = {"nothing": _nothing, "redacts": _redact, "masks": _mask}
