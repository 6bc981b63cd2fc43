"""A model of the app: the `Chat` it is given, and how what it yields becomes one stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.errors import ModelFailed, OpenAISSEError, UpstreamTruncated
from quart_openai_sse.logs.entries import RESERVED_EVENTS, Entry, Kind
from quart_openai_sse.observers import APP
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers import CLEAN_UP
from quart_openai_sse.producers.access import UpstreamAccess
from quart_openai_sse.producers.calls import Call
from quart_openai_sse.producers.generators import AppGenerator
from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.producers.model_deadlines import ModelDeadlines
from quart_openai_sse.producers.transforms import Transform
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import add_usage
from quart_openai_sse.protocol.chunks import has_output
from quart_openai_sse.protocol.completeness import Completion, Signal
from quart_openai_sse.protocol.upstream_errors import stream_error

logger = logging.getLogger("quart_openai_sse")


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
that was cut would look complete. It need not close that SDK's stream: whatever ends the stream, the SDK's wait for its
next chunk is cancelled.
"""


class AppModel:
    """Runs a model of the app, or with `None` the upstream's answer, through the app's transforms.

    The stream has one id, one role, one finish and the sum of all usage; everything is closed at its end.
    """

    cancels_at_once = True
    """The app's generators run in a task of their own."""

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
        self._ended: asyncio.Future[None]
        self._deadlines = _deadlines(access.config, body["model"])
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
        """See `Producer.run`. Within `CLEAN_UP` seconds after the stream's end, the app's generators are closed."""
        self._ended = asyncio.get_running_loop().create_future()
        filling = asyncio.create_task(self._fill(intake))
        try:
            async with self._deadlines if self.upstream == APP else nullcontext():
                await self._ended
        finally:
            if self._ended.cancelled():  # by the caller, or by a deadline
                filling.cancel()
            await _end_of(filling)

    async def _fill(self, intake: Intake) -> None:
        """Appends the whole stream, sets how it ended, and closes all that it opened.

        Context variables, timeouts and task groups of the app's generators belong to one task: this one.
        """
        error: Exception | None = None
        async with AsyncExitStack() as opened:
            try:
                await self._append_all(intake, opened)
            except asyncio.CancelledError:
                error = OpenAISSEError("The producer was cancelled.")
            except Exception as raised:
                error = raised
            if self._ended.done():
                return
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)

    async def _append_all(self, intake: Intake, opened: AsyncExitStack) -> None:
        """Appends what the model yields, through the transforms, and the end."""
        opened.push_async_callback(self._close_calls)
        with _failing_app:
            model, passing = self._open(opened)
        items = passing.items
        while True:
            try:
                with _failing_app:
                    item = await anext(items)
            except StopAsyncIteration:
                break
            self._append(intake, self._entries(item, intake.elapsed()))
            await intake.room()
            # A generator that never waits must not starve the loop, nor miss that it is stopped.
            await asyncio.sleep(0)
        self._append(intake, self._finish(intake.elapsed(), exhausted=model.exhausted))
        self.completion.end()

    def _open(self, opened: AsyncExitStack) -> tuple[AppGenerator, AppGenerator]:
        """The model, and the last of the transforms behind it. *opened* closes each before the one it iterates over."""
        self._deadlines.model = model = passing = AppGenerator(self._model(self._chat), self._taken)
        opened.push_async_callback(model.aclose)
        for transform in self._transforms:
            passing = AppGenerator(transform(passing.items, self._chat), _normal)
            opened.push_async_callback(passing.aclose)
        return model, passing

    async def _close_calls(self) -> None:
        for call in self._calls:
            await call.aclose()

    def _call(self, body: Mapping[str, Any]) -> Call:
        call = Call(self._access, body, self._deadlines)
        self._calls.append(call)
        return call

    def _taken(self, item: Any) -> Event | Mapping[str, Any]:
        """The event or chunk for an item of the model."""
        normal = _normal(item)
        if not self._deadlines.started:
            self._deadlines.started = isinstance(normal, Event) or _has_output(normal)
        return normal

    def _append(self, intake: Intake, entries: list[Entry]) -> None:
        if self._ended.done():  # and the model, or a transform, swallowed its cancellation
            raise OpenAISSEError("The stream has ended.")
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

    def _finish(self, t: float, *, exhausted: bool) -> list[Entry]:
        """The one finish of each choice, and the usage of all calls together."""
        if self._unfinished:
            # OpenAI's SDK does not tell a stream that was cut from one that ended.
            raise UpstreamTruncated("The model's stream of another SDK ended without its finish_reason.")
        indices = sorted(self._roles or {0})
        if not exhausted and not self._finish_reasons.keys() >= set(indices):
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


class _FailingApp:
    """A context manager: an exception of the app's code becomes `ModelFailed`; an `OpenAISSEError` is kept."""

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, OpenAISSEError | StopAsyncIteration):
            raise ModelFailed("The app's model failed.") from error


_failing_app = _FailingApp()

_abandoned: set[asyncio.Task[None]] = set()
"""Tasks that did not end in time. An event loop holds no reference to its tasks."""


async def _end_of(task: asyncio.Task[None]) -> None:
    """Waits for the end of *task*, and leaves it behind if that takes longer than `CLEAN_UP`."""
    try:
        await asyncio.wait([task], timeout=CLEAN_UP)
    finally:
        if not task.done():
            logger.warning("%r is being closed, and does not end", task)
            _abandoned.add(task)
            task.add_done_callback(_abandoned.discard)


def _deadlines(config: Config, model: str) -> ModelDeadlines:
    return ModelDeadlines(
        total=config.model_total_timeout,
        first_output=config.first_output_timeouts.get(model, config.model_first_output_timeout),
        gap=config.gap_timeouts.get(model, config.model_gap_timeout),
    )


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


def _has_output(chunk: Mapping[str, Any]) -> bool:
    return any(choice.get("finish_reason") or has_output(choice.get("delta") or {}) for choice in chunk["choices"])


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
