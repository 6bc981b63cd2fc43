"""A model of the app: the `Chat` it is given, and how what it yields becomes one stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from quart_openai_sse.errors import ModelFailed, OpenAISSEError, UpstreamTruncated
from quart_openai_sse.logs.entries import RESERVED_EVENTS, Entry, Kind
from quart_openai_sse.observers import APP
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers.access import UpstreamAccess
from quart_openai_sse.producers.calls import Call
from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.producers.transforms import Transform, transformed
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import add_usage
from quart_openai_sse.protocol.completeness import Completion, Signal
from quart_openai_sse.protocol.upstream_errors import stream_error


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
        return self._call({**members, "model": model, "messages": messages})


ModelFunction = Callable[[Chat], AsyncIterator[Any]]
"""An async generator function: it yields strings, chunks (mappings or SDK objects) and `Event`s.

A model that passes on the chunks of another SDK must pass on those with a `finish_reason` too: without them, a stream
that was cut would look complete.
"""


class AppModel:
    """Runs a model of the app, or with `None` the upstream's answer, through the app's transforms.

    The stream has one id, one role, one finish and the sum of all usage; everything is closed at its end.
    """

    cancels_at_once = False

    def __init__(
        self,
        model: ModelFunction | None,
        body: Mapping[str, Any],
        *,
        access: UpstreamAccess,
        stream_id: str,
        metadata: Mapping[str, Any],
        transforms: Sequence[Transform] = (),
    ) -> None:
        self.upstream = access.upstream.name if model is None else APP
        self.completion = Completion()
        self._model = model or _pass_on
        self._access = access
        self._chat = Chat(body, principal=access.principal, metadata=metadata, call=self._call)
        self._transforms = transforms
        self._exhausted = False
        self._calls: list[Call] = []
        self._head = {
            "id": f"chatcmpl-{stream_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": body["model"],
        }
        self._roles: set[int] = set()
        self._finish_reasons: dict[int, str] = {}
        self._usage: dict[str, Mapping[str, Any]] = {}  # of foreign chunks, by their id
        self._unfinished: set[tuple[str, int]] = set()  # choices of foreign streams

    async def run(self, intake: Intake) -> None:
        """See `Producer.run`."""
        try:
            async with aclosing(self._items()) as items:
                async for item in items:
                    self._append(intake, self._entries(item, intake.elapsed()))
                    await intake.room()
                    # A generator that never waits must not starve the loop, nor miss that it is stopped.
                    await asyncio.sleep(0)
            self._append(intake, self._finish(intake.elapsed()))
            self.completion.end()
        finally:
            for call in self._calls:
                await call.aclose()

    async def _items(self) -> AsyncGenerator[Any, None]:
        """The items for the log. An exception of the app's code becomes `ModelFailed`, an `OpenAISSEError` is kept."""
        try:
            passing = transformed(self._source(), self._transforms, self._chat, normal=_normal)
            async with aclosing(passing) as items:
                async for item in items:
                    yield item
        except OpenAISSEError:
            raise
        except Exception as error:
            raise ModelFailed("The app's model failed.") from error

    async def _source(self) -> AsyncGenerator[Any, None]:
        """The items that the model yields."""
        async with aclosing(cast(AsyncGenerator[Any, None], self._model(self._chat))) as generator:
            async for item in generator:
                yield item
        self._exhausted = True

    def _call(self, body: Mapping[str, Any]) -> Call:
        call = Call(self._access, body)
        self._calls.append(call)
        return call

    def _append(self, intake: Intake, entries: list[Entry]) -> None:
        if entries:
            intake.append(entries)

    def _entries(self, item: Event | Mapping[str, Any], t: float) -> list[Entry]:
        if isinstance(item, Event):
            return [Entry(_encoded(item.data), t, kind=Kind.EVENT, name=item.name)]
        return self._chunk(item, t)

    def _chunk(self, chunk: Mapping[str, Any], t: float) -> list[Entry]:
        """The entries for a chunk: with this stream's id, without the chunk's own role, finish and usage."""
        origin = str(chunk.get("id") or "")
        foreign = not any(origin in call.ids for call in self._calls)
        if foreign and isinstance(usage := chunk.get("usage"), Mapping):
            self._usage[origin] = usage
        entries, choices = [], []
        for choice in chunk["choices"]:
            index = choice.get("index") or 0
            delta = {name: value for name, value in (choice.get("delta") or {}).items() if name != "role"}
            if any(delta.values()):
                if index not in self._roles:
                    self._roles.add(index)
                    entries.append(self._entry([_new_choice(index, {"role": "assistant", "content": ""})], t))
                self._finish_reasons.pop(index, None)
                if foreign and origin:
                    self._unfinished.add((origin, index))
                choices.append({**choice, "index": index, "delta": delta, "finish_reason": None})
            if choice.get("finish_reason"):
                self._finish_reasons[index] = choice["finish_reason"]
                self._unfinished.discard((origin, index))
        if choices:
            others = {name: value for name, value in chunk.items() if name not in ("usage", "error")}
            entries.append(self._entry(choices, t, others))
        return entries

    def _finish(self, t: float) -> list[Entry]:
        """The one finish of each choice, and the usage of all calls together."""
        if self._unfinished:
            # OpenAI's SDK does not tell a stream that was cut from one that ended.
            raise UpstreamTruncated("The model's stream of another SDK ended without its finish_reason.")
        indices = sorted(self._roles or {0})
        if not self._exhausted and not self._finish_reasons.keys() >= set(indices):
            raise ModelFailed("A transform ended the stream without a finish_reason, and without StreamStopped.")
        entries = []
        for index in indices:
            delta = {} if self._roles else {"role": "assistant", "content": ""}
            entries.append(self._entry([_new_choice(index, delta, self._finish_reason(index))], t))
        usage: dict[str, Any] | None = None
        for each in (*self._usage.values(), *(call.usage for call in self._calls)):
            usage = add_usage(usage, each)
        if usage is not None:
            entries.append(self._entry([], t, {"usage": usage}))
        return entries

    def _finish_reason(self, index: int) -> str:
        """The reason that a chunk gave, or else, where a transform left it out, the reason that the upstream gave."""
        found = self._finish_reasons.get(index)
        if found is None and self.upstream != APP and self._calls:
            found = self._calls[0].finish_reasons.get(index)
        return found or "stop"

    def _entry(self, choices: list[dict[str, Any]], t: float, others: Mapping[str, Any] | None = None) -> Entry:
        chunk = {**(others or {}), **self._head, "choices": choices}
        data = _encoded(chunk)
        return Entry(data, t, self.completion.feed(data) is Signal.USAGE)


async def _pass_on(chat: Chat) -> AsyncGenerator[Any, None]:
    """The upstream's answer as a model: the input of transforms if the app has no model of the name."""
    async for chunk in chat._call(chat.body):
        yield chunk


def _normal(item: Any) -> Event | Mapping[str, Any]:
    """The event or chunk for an item that a model or a transform yielded. Raises `ModelFailed` for any other item."""
    if isinstance(item, Event):
        return item
    if isinstance(item, str):
        return {"choices": [_new_choice(0, {"content": item})]}
    chunk = item if isinstance(item, Mapping) else _dumped(item)
    if (failure := stream_error(chunk)) is not None:
        raise failure
    if not _is_chunk(chunk):
        raise ModelFailed(f"A model cannot yield this {type(item).__name__}: it has no choices with a delta.")
    return chunk


def _new_choice(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish_reason}


def _is_chunk(chunk: Mapping[str, Any]) -> bool:
    choices = chunk.get("choices")
    return isinstance(choices, list) and all(
        isinstance(choice, Mapping) and isinstance(choice.get("delta"), Mapping | None) for choice in choices
    )


def _dumped(item: Any) -> Mapping[str, Any]:
    """A chunk object of the OpenAI SDK, or of another with Pydantic models."""
    dump = getattr(item, "model_dump", None)
    dumped = dump(mode="json", exclude_unset=True) if callable(dump) else None
    if not isinstance(dumped, Mapping):
        raise ModelFailed(f"A model cannot yield {type(item).__name__}: only text, chunks and events.")
    return dumped


def _encoded(value: Any) -> bytes:
    try:
        return json.encode(value)
    except (TypeError, ValueError) as error:
        raise ModelFailed(f"A model yielded a value that JSON cannot hold: {error}.") from error
