"""What an app registers: models, transforms, `prepare`, `on_end` and observers; and how each is called."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.errors import AuthUnavailable, OpenAISSEError
from quart_openai_sse.functions import runs_on_loop
from quart_openai_sse.logs.entries import Outcome
from quart_openai_sse.observers import EventKind, Observer, StreamEvent, StreamRecord
from quart_openai_sse.observers.log_line import log_stream
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers.chat import ModelFunction
from quart_openai_sse.producers.transforms import Transform
from quart_openai_sse.protocol.chunks import refusal_of_delta, text_of_delta
from quart_openai_sse.protocol.requests import validate
from quart_openai_sse.relay.background import Background
from quart_openai_sse.relay.bounded_calls import BoundedCalls
from quart_openai_sse.relay.deliveries import Deliveries

logger = logging.getLogger("quart_openai_sse")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnd:
    """The argument of `on_end`: plain values that stay valid outside of a request."""

    id: str
    outcome: Outcome
    reason: str
    error: OpenAISSEError | None
    principal: Principal
    thread: str
    model: str
    body: Mapping[str, Any]
    """The request, after `prepare`."""
    metadata: Mapping[str, Any]
    message: Mapping[str, Any] | None
    """The assistant's message so far; it is whole only if `outcome` is `completed`. `None` if there was no output, or
    more than `max_bytes`."""
    reasoning: str = ""
    """What the model reasoned, in whichever members of its deltas or message the upstream sent it; or ""."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the upstream sent besides words, by the members' names: `citations`, `search_results`, `annotations`,
    `images`, `prompt_filter_results` and others."""
    events: tuple[tuple[str, Any], ...]
    """The names and data of the app's events, as many as have `max_bytes` together."""
    finish_reasons: Mapping[int, str]
    usage: Mapping[str, Any] | None
    record: StreamRecord
    attempt: int = 1
    """How many workers have had the stream. With 2 or more, on a log that workers share, a worker died: `on_end` may
    have been called for this stream before, and may have been cut half-way."""

    @property
    def text(self) -> str:
        """The message's content, and its refusal if there is one; "" without either.

        If the answer was cut within an emoji, the last character is "\ufffd".
        """
        message = self.message or {}
        return readable(text_of_delta(message) + refusal_of_delta(message))


def readable(text: str) -> str:
    """*text* with "\ufffd" in place of half a character, which a database might refuse."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


Prepare = Callable[[dict[str, Any], Principal], Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None]
OnEnd = Callable[[StreamEnd], Awaitable[None] | None]


@dataclass
class Hooks:
    """What the app has registered."""

    app_models: dict[str, ModelFunction] = field(default_factory=dict)
    transforms: list[Transform] = field(default_factory=list)
    prepare: list[Prepare] = field(default_factory=list)
    on_end: list[OnEnd] = field(default_factory=list)
    observers: list[Observer] = field(default_factory=list)

    async def run_prepare(self, body: dict[str, Any], principal: Principal, *, calls: HookCalls) -> dict[str, Any]:
        """The request as the hooks leave it, validated again. Raises what they raise, and `HookTimeout`.

        Its nesting is not checked.
        """
        if not self.prepare:
            return body
        stream = body.get("stream")
        body = _copied(body)  # a hook may change it in place, and the caller's own messages must not change
        for hook in self.prepare:
            prepared = await calls.prepare.result(hook, body, principal)
            body = dict(body if prepared is None else prepared)
        return validate({**body, "stream": stream})  # hooks cannot change whether the answer is streamed

    async def run_on_end(self, end: StreamEnd, *, calls: HookCalls) -> None:
        """Calls the hooks, and waits for them at most `on_end_timeout` seconds. What they raise is logged."""
        if not self.on_end:
            return
        made = [calls.on_end.call(hook, end) for hook in self.on_end]
        await asyncio.wait([call.task for call in made], timeout=calls.on_end.timeout)
        for call in made:
            if not call.task.done():
                calls.on_end.let_go_on(call, stream=end.id)
            else:
                calls.on_end.log_failure(call, stream=end.id)

    def closers(self) -> list[Callable[[], Awaitable[None]]]:
        """The coroutine methods `aclose` of `prepare` hooks, which close connections of the running event loop."""
        found: list[Any] = [getattr(hook, "aclose", None) for hook in self.prepare]
        return [aclose for aclose in found if runs_on_loop(aclose)]

    def observe(self, kind: EventKind, record: StreamRecord, *, calls: HookCalls) -> None:
        """Writes the log line of an ended stream, and calls the observers. Nothing waits for them."""
        if kind == "ended":
            try:
                log_stream(record)
            except Exception:  # in a filter or handler of the app
                logger.exception("a stream's line could not be logged")
        if self.observers:
            calls.deliveries.add(StreamEvent(kind, replace(record)), self.observers)


class HookCalls:
    """The calls of one engine's hooks. Each kind has its own threads: one kind can't use up those of another."""

    def __init__(self, config: Config, background: Background) -> None:
        create = partial(BoundedCalls, threads=config.hook_threads, background=background)
        self.auth = create("auth", timeout=config.auth_timeout, late_error=AuthUnavailable)
        self.prepare = create("prepare", timeout=config.prepare_timeout)
        self.on_end = create("on_end", timeout=config.on_end_timeout)
        self.observe = create("observe", timeout=config.observe_timeout)
        self.deliveries = Deliveries(self.observe)


def _copied(value: Any) -> Any:
    """A copy of a JSON value, whose nesting is limited. Other objects in it are not copied."""
    if isinstance(value, dict):
        return {name: _copied(member) for name, member in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
