"""A model of the app: how it is run, fills its stream, and is closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from time import monotonic
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.errors import ModelFailed, OpenAISSEError, UpstreamTruncated
from quart_openai_sse.logs.entries import Entry
from quart_openai_sse.observers import APP
from quart_openai_sse.producers import CLEAN_UP
from quart_openai_sse.producers.access import UpstreamAccess
from quart_openai_sse.producers.calls import Call, CallChoice, CallChunk, CountedUsage
from quart_openai_sse.producers.chat import Chat, Event, ModelFunction
from quart_openai_sse.producers.failing_app import FailingApp
from quart_openai_sse.producers.foreign import ForeignStreams
from quart_openai_sse.producers.generators import AppGenerator, throw
from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.producers.items import InvalidItem, is_answer, is_output, normalize, transformed
from quart_openai_sse.producers.joined_stream import JoinedStream
from quart_openai_sse.producers.model_deadlines import ModelDeadlines
from quart_openai_sse.producers.transforms import Transform
from quart_openai_sse.protocol.chunks import finish_of, has_output
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.protocol.usage import add_usage, count_tokens

logger = logging.getLogger("quart_openai_sse")


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
        n = body.get("n") or 1
        self.completion = Completion(n=n)
        self._model = model or _pass_on
        self._access = access
        self._chat = Chat(body, principal=access.principal, metadata=metadata, call=self._call)
        self._transforms = transforms
        self._failing_app = FailingApp(stream_id, body)
        self._ended: asyncio.Future[None]
        self._deadlines = _deadlines(access.config, body["model"])
        self._calls: list[Call] = []
        self._foreign = ForeignStreams(n=n)
        self._joined = JoinedStream(self.completion, stream_id=stream_id, model=body["model"])
        self._cost = None if access.meter is None else access.meter.follow(self.completion)
        if access.meter is not None:
            access.meter.further = self._further_tokens
        self._made = 0
        """The chunks with output that the model has yielded besides those of its calls."""
        self._has_answer = False
        """Whether the model has yielded anything, or the reason why there is nothing."""

    async def run(self, intake: Intake) -> None:
        """See `Producer.run`. Within `CLEAN_UP` seconds after the stream's end, the app's generators are closed."""
        self._ended = asyncio.get_running_loop().create_future()
        if self._cost is not None:
            self._cost.begin()
        filling = asyncio.create_task(self._fill(intake))
        try:
            async with self._deadlines if self.upstream == APP else nullcontext():
                await self._ended
        except (asyncio.CancelledError, OpenAISSEError):
            if not self.completion.done:  # a stream that is whole has not failed, and cannot be stopped any more
                raise
        finally:
            if self._ended.cancelled():  # by the caller, or by a deadline
                filling.cancel()
            await _end_of(filling)
            # A stream that was cut, or that failed, has cost something too.
            if not self.completion.done:
                self.completion.usage = add_usage(self._usage(), self._joined.usage)

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
            except BaseException:  # ends the event loop, which may be run again
                self._end(OpenAISSEError("The stream failed."))
                raise
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    async def _append_all(self, intake: Intake, opened: AsyncExitStack) -> None:
        """Appends what the model yields, through the transforms, and the end."""
        opened.push_async_callback(self._close_calls)
        with self._failing_app:
            generators = self._open(opened)
        model, items = generators[0], generators[-1].items
        while True:
            try:
                with self._failing_app:
                    item = await anext(items)
            except StopAsyncIteration:
                break
            self._append(intake, self._entries(item, intake.elapsed(), generators[-1]))
            await self._wait_for_room(intake, generators)
        self._append(intake, self._finish(intake.elapsed(), exhausted=model.exhausted))
        self.completion.end()

    def _entries(self, item: Event | Mapping[str, Any], t: float, source: AppGenerator) -> list[Entry]:
        """The entries for an item of *source*."""
        with self._failing_app:
            try:
                return self._joined.entries(item, t)
            except InvalidItem as error:
                error.add_note(source.place)
                raise

    def _finish(self, t: float, *, exhausted: bool) -> list[Entry]:
        """The last entries. *exhausted*: the model has ended by itself, and not because a transform ended the stream.

        Raises `UpstreamTruncated` and `ModelFailed` if the model's answer is not complete.
        """
        if exhausted and self._foreign.cut:
            # OpenAI's SDK does not tell a stream that was cut from one that ended.
            raise UpstreamTruncated("The model's stream of another SDK ended without its finish_reason.")
        if exhausted and self.upstream == APP and not self._has_answer:
            raise ModelFailed("The app's model failed.") from ValueError(
                "The model yielded neither text nor a tool call nor an event. Did a library keep an error to itself?"
            )
        return self._joined.finish(t, exhausted=exhausted, usage=self._usage())

    def _usage(self) -> dict[str, Any] | None:
        """The usage that is known of all that the model has passed on or asked."""
        usage = self._foreign.usage
        for call in self._calls:
            usage = add_usage(usage, call.usage)
        return usage

    def _further_tokens(self) -> int:
        """The tokens beside those of calls: of other clients' streams, and those that the model reports itself."""
        total, _, _ = count_tokens(add_usage(self._foreign.usage, self._joined.usage))
        return max(total, self._foreign.chunks)

    async def _wait_for_room(self, intake: Intake, generators: list[AppGenerator]) -> None:
        try:
            await intake.room()
            # A generator that never waits must not starve the loop, nor miss that it is stopped.
            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            if self._ended.done():
                raise
            throw(error, generators)  # the timeout or task group that cancels this task is open in one of them

    def _open(self, opened: AsyncExitStack) -> list[AppGenerator]:
        """The model, and the transforms behind it. *opened* closes each before the one it iterates over."""
        self._deadlines.model = model = AppGenerator(self._model(self._chat), self._taken)
        generators = [model]
        opened.push_async_callback(model.aclose)
        for transform in self._transforms:
            generators.append(AppGenerator(transform(generators[-1].items, self._chat), transformed))
            opened.push_async_callback(generators[-1].aclose)
        return generators

    async def _close_calls(self) -> None:
        for call in self._calls:
            await call.aclose()

    def _call(self, body: Mapping[str, Any]) -> Call:
        call = Call(self._access, body, self._deadlines, self._ended)
        self._calls.append(call)
        if self.upstream != APP:
            self._joined.call = call
        return call

    def _taken(self, item: Any) -> Event | Mapping[str, Any] | None:
        """The event or chunk for an item of the model; `None` for none."""
        if type(item) is CallChunk and self._has_answer and self._deadlines.started:
            return item  # as nearly every item of a model that passes on a call
        normal = normalize(item)
        if normal is None:
            return None
        if not isinstance(normal, (Event, CallChunk)) and not _is_copy(normal):
            before = self._foreign.chunks
            normal = self._foreign.take(normal)
            self._charge_made(normal, passed_on=self._foreign.chunks > before)
        if not self._deadlines.started:
            self._deadlines.started = is_output(normal)
        if not self._has_answer:
            self._has_answer = is_answer(normal)
        return normal

    def _charge_made(self, chunk: Mapping[str, Any], *, passed_on: bool) -> None:
        """Charges a chunk that is not of a call, whatever transforms make of it."""
        meter, cost = self._access.meter, self._cost
        choices = chunk["choices"]
        if meter is None or cost is None or not any(has_output(choice.get("delta") or {}) for choice in choices):
            return
        if not any(finish_of(choice.get("finish_reason")) for choice in choices):
            meter.charge_made(passed_on=passed_on)  # for those before it
        self._made += 1
        cost.chunks = max(cost.chunks, self._made)
        self._note_usage()

    def _note_usage(self) -> None:
        """Sets the usage of a model without calls so far, for the meter."""
        if not self._calls and not self.completion.finished:
            self.completion.usage = add_usage(self._foreign.usage, self._joined.usage)

    def _append(self, intake: Intake, entries: list[Entry]) -> None:
        if self._ended.done():  # and the model, or a transform, swallowed its cancellation
            raise OpenAISSEError("The stream has ended.")
        if entries:
            if self._cost is not None:
                self._note_usage()
            intake.append(entries)


def _is_copy(chunk: Mapping[str, Any]) -> bool:
    """Whether the model has made *chunk* of a chunk of a call: it has a choice or the usage of one."""
    choices = chunk.get("choices") or ()
    return any(type(choice) is CallChoice for choice in choices) or type(chunk.get("usage")) is CountedUsage


_abandoned: set[asyncio.Task[None]] = set()
"""Tasks that did not end in time. An event loop holds no reference to its tasks."""


async def _end_of(task: asyncio.Task[None]) -> None:
    """Waits for the end of *task*, and leaves it behind if that takes longer than `CLEAN_UP`.

    If this is cancelled, it still waits: the stream has ended already.
    """
    until = monotonic() + CLEAN_UP
    while not task.done() and (patience := until - monotonic()) > 0:
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task], timeout=patience)
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
