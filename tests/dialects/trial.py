"""A sample on its way through the apps, and what is found to be wrong."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from quart_openai_sse import OpenAISSEError, Principal
from tests.conftest import QUESTION
from tests.dialects.apps import LENIENT, App, create_app, has_lenient
from tests.dialects.judge import brief, differences, expected_of, kept
from tests.dialects.oracle import read
from tests.dialects.sample import Sample
from tests.dialects.upstream import dialect_upstream
from tests.dialects.wire import Seen, end_seen, normalized

CHAT, STREAMS = "/v1/chat/completions", "/v1/streams"
STREAMS_OPENAI = f"{STREAMS}?format=openai"
OUTCOME_AND_TEXT = ("outcome", "text")

_numbers = itertools.count()


@dataclass
class Bench:
    """The apps that the samples go through."""

    plain: App
    transformed: App
    redacting: App
    masking: App
    lenient: App | None
    """`None` as long as the product has no such option."""
    upstream: str
    """The upstream's address."""


@asynccontextmanager
async def bench(samples: Iterable[Sample]) -> AsyncIterator[Bench]:
    """The apps before an upstream that serves *samples*, until the block is left."""
    async with dialect_upstream(samples) as server:
        url = server.base_url
        yield Bench(
            create_app(url),
            create_app(url, transform="nothing"),
            create_app(url, transform="redacts"),
            create_app(url, transform="masks"),
            create_app(url, options={LENIENT: False}) if has_lenient() else None,
            url,
        )


@dataclass
class Trial:
    """One sample in all ways."""

    bench: Bench
    sample: Sample
    problems: list[str] = field(default_factory=list)
    messages: dict[str, Any] = field(default_factory=dict)
    """The message of each way in which the sample is whole."""
    detail_names: set[str] = field(default_factory=set)
    """The members that some way counts as details: `ai.complete` adds them to the message."""

    def note(self, way: str, found: Iterable[str]) -> None:
        """Adds what is wrong in a way."""
        self.problems += [f"{way}: {each}" for each in found]

    def whole(self, way: str, seen: Seen, *, redacted: str = "") -> None:
        """Compares what a way shows of the whole sample."""
        self.note(way, differences(seen, expected_of(self.sample, redacted=redacted)))
        if self.sample.outcome == "completed" and "message" in seen and not redacted:
            self.messages[way] = seen["message"]

    def holds(self, way: str, message: Any, details: Any = None) -> None:
        """Compares the members that the message must have."""
        if self.sample.outcome == "completed":
            self.note(way, kept(self.sample, message, details))

    def ended(self, way: str, end: Any) -> None:
        """Compares what `on_end` was given of the whole sample."""
        if end is None:
            self.note(way, ["on_end was not called"])
            return
        seen = end_seen(end)
        self.whole(f"{way}, on_end", seen)
        self.holds(f"{way}, on_end", end.message, seen["details"])
        if isinstance(seen["details"], Mapping):
            self.detail_names.update(seen["details"])

    async def post(
        self, app: App, path: str, model: str, *, stream: bool = True, passed: str = "", usage: bool = False
    ) -> tuple[int, bytes, Any]:
        """Sends a request: the status and the body of the response, and what `on_end` was given."""
        body = self.body(model, passed=passed)
        if usage:
            body["stream_options"] = {"include_usage": True}
        status, data = await app.post(path, {**body, "stream": stream})
        return status, data, app.ends.pop(body["user"], None)

    async def complete(self, model: str, *, passed: str = "") -> tuple[dict[str, Any] | None, Any]:
        """Calls `ai.complete`: the message, or `None` if it raised, and what `on_end` was given."""
        app, body = self.bench.plain, self.body(model, passed=passed)
        message = None
        async with app.app.app_context():
            with suppress(OpenAISSEError):
                message = await app.ai.complete(body, principal=Principal("ann"))
        return message, app.ends.pop(body["user"], None)

    def body(self, model: str, *, passed: str = "") -> dict[str, Any]:
        """A request. *passed* are the models that an app's model asks for."""
        user = f"request-{next(_numbers)}"
        return {"model": model, "messages": QUESTION, "user": user, "metadata": {"models": passed}}

    def check_the_oracle(self) -> None:
        """The oracle's reading must be the one that the sample was written with."""
        self.note("the harness itself", differences(vars(read(self.sample.frames)), expected_of(self.sample)))

    def compare_messages(self) -> None:
        """The same message in each way: the first is the one that the others are compared with."""
        compared = {
            way: normalized(message or {}, self.sample.frames, self.detail_names)
            for way, message in self.messages.items()
        }
        for way, message in compared.items():
            first = next(iter(compared))
            if message != compared[first]:
                self.note(way, [f"the message is {brief(message)}, and {brief(compared[first])} in {first}"])
