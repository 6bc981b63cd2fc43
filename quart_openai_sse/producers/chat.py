"""What a model of the app is given, its `Chat`, and what it yields besides text and chunks, an `Event`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quart_openai_sse.logs.entries import RESERVED_EVENTS
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers.calls import Call, CallMessage


@dataclass(frozen=True, slots=True)
class Event:
    """An app event: kept and replayed with the stream, absent from OpenAI's wire. *data* is any JSON value."""

    name: str
    data: Any = None

    def __post_init__(self) -> None:
        if self.name in RESERVED_EVENTS or not self.name.isprintable() or len(self.name) > 100:
            raise ValueError(f"An app event cannot be named {self.name!r}.")


class Chat:
    """The argument of an app's model: one request, and `call` to ask the upstream from within."""

    def __init__(
        self,
        body: Mapping[str, Any],
        *,
        principal: Principal,
        metadata: Mapping[str, Any],
        call: Callable[[Mapping[str, Any]], Call],
    ) -> None:
        self.body = body
        self.principal = principal
        self.metadata = metadata
        self._call = call

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far."""
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages

    def call(self, model: str, messages: list[dict[str, Any]], **members: Any) -> Call:
        """Asks the upstream: iterate over the chunks, or await the whole message."""
        sent = [each.as_sent() if isinstance(each, CallMessage) else each for each in messages]
        return self._call({**members, "model": model, "messages": sent})


ModelFunction = Callable[[Chat], AsyncIterator[Any]]
"""An async generator function: it yields strings, chunks (mappings or SDK objects) and `Event`s.

A model that passes on the chunks of another SDK must pass on those with a `finish_reason` too: without them, a stream
that was cut would look complete. It need not close that SDK's stream: whatever ends the stream, the SDK's wait for its
next chunk is cancelled.
"""
