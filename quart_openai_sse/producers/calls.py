"""A request upstream from within an app's model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator, Mapping
from typing import Any, Self

from quart_openai_sse.errors import StreamTooLong, TokensSpent
from quart_openai_sse.flow import PAUSE, Flow
from quart_openai_sse.logs.entries import Entry
from quart_openai_sse.producers.access import UpstreamAccess, streaming_body
from quart_openai_sse.producers.chunk_sink import ChunkSink
from quart_openai_sse.producers.costs import RequestCost
from quart_openai_sse.producers.intake import Attempts
from quart_openai_sse.producers.model_deadlines import ModelDeadlines
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.protocol.chunks import as_delta, find_index, one_choice
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.protocol.parsing import decode_chunk
from quart_openai_sse.protocol.pieces import Calls


class CallChunk(dict[str, Any]):
    """A chunk of a `Call`: a model that passes it on need not say whose it is."""

    __slots__ = ()


class CallChoice(dict[str, Any]):
    """A choice of such a chunk, by which a copy of the chunk is known, too."""

    __slots__ = ()


class CallMessage(dict[str, Any]):
    """The message of a `Call`. What came as parts of its content is in members that the upstream does not know."""

    __slots__ = ("_added",)

    def __init__(self, assembly: Assembly) -> None:
        super().__init__(assembly.first_message() or {})
        self._added = assembly.added

    def as_sent(self) -> dict[str, Any]:
        """The message without those members, for another request: Mistral refuses members that it does not know."""
        return {name: value for name, value in self.items() if name not in self._added}


class CountedUsage(dict[str, Any]):
    """A chunk's usage that is counted already. It keeps its type if a model or a transform copies the chunk."""

    __slots__ = ()


class Call:
    """One request upstream from within an app's model.

    `async for` iterates over its chunks; `await` returns the whole message. Either raises an `UpstreamError`. It is
    closed once it was awaited, or with the stream it belongs to. A model that may stop half-way uses `async with`,
    which closes it at once. While the model waits for it, the model's own *deadlines* are paused. After *ended*, the
    end of the stream, nothing is sent, and either raises `CancelledError`. Either raises `TokensSpent`, too, when the
    principal's tokens are spent.
    """

    def __init__(
        self,
        access: UpstreamAccess,
        body: Mapping[str, Any],
        deadlines: ModelDeadlines,
        ended: asyncio.Future[None],
    ) -> None:
        self._completion = Completion(n=body.get("n") or 1)
        self._message = Assembly(n=body.get("n") or 1, limit=access.config.max_bytes)
        self._one = (body.get("n") or 1) == 1
        self._numbers: dict[int, Calls] = {}
        self._entries: deque[Entry] = deque()
        self._news = asyncio.Event()
        self._space = asyncio.Event()
        # Of its own, because several calls may run at the same time.
        self._attempts = Attempts(access.attempts.record, access.attempts.on_retry)
        self._sink = ChunkSink(
            self._completion,
            attempts=self._attempts,
            take=self._take,
            room=self._room,
            max_event=access.config.max_event,
        )
        self._access = access
        self._deadlines = deadlines
        self._ended = ended
        self._body = streaming_body(body, access.config)
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._id = f"call-{id(self):x}"  # for chunks without an id: some upstreams leave it out of the usage chunk

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message so far, tool calls included. It can be put into the messages of another call."""
        return CallMessage(self._message)

    @property
    def reasoning(self) -> str:
        """The reasoning so far, in whichever member the upstream sends it; "" without any."""
        return self._message.reasoning

    @property
    def details(self) -> dict[str, Any]:
        """What came besides words so far, such as `citations` or `images`, by the members' names."""
        return self._message.details

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended, if it did."""
        return self._completion.finish_reasons.get(0)

    @property
    def finish_reasons(self) -> Mapping[int, str]:
        """Why each choice ended."""
        return self._completion.finish_reasons

    @property
    def usage(self) -> dict[str, Any] | None:
        """The usage that the upstream reported so far."""
        return self._completion.usage

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if self._closed:
            raise RuntimeError("This call is closed.")
        if self._ended.done():
            # A model that is at its `yield` when the stream ends runs on to its next wait, and is cancelled there. A
            # task that is cancelled before its first step may still write the request, so none is made.
            await asyncio.sleep(0)
            raise asyncio.CancelledError
        if self._task is None:
            if (meter := self._access.meter) is not None:
                try:
                    self._attempts.cost = meter.call(self._body, self._completion)
                except TokensSpent:
                    await asyncio.sleep(0)  # a model that tries again and again must not starve the loop
                    raise
            self._task = asyncio.ensure_future(self._ask(self._attempts.cost))
            self._task.add_done_callback(self._over)
        while not self._entries:
            if self._task.done():
                self._task.result()
                raise StopAsyncIteration
            self._news.clear()
            self._space.set()
            self._deadlines.pause()
            try:
                await self._news.wait()
            finally:
                self._deadlines.resume()
        return self._chunk(self._entries.popleft())

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        return self._whole().__await__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the request, and closes its connection. May be called twice."""
        self._closed = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _whole(self) -> dict[str, Any]:
        try:
            async for _ in self:
                pass
        finally:
            await self.aclose()
        if self._message.message() is None:
            raise StreamTooLong("The upstream's answer is too large.")
        return self.message

    async def _ask(self, cost: RequestCost | None) -> None:
        access = self._access
        try:
            await access.upstream.run(self._body, self._sink, principal=access.principal, commits=access.commits)
        except BaseException as error:
            if cost is not None:
                cost.failed(error)
            raise

    def _over(self, task: asyncio.Task[None]) -> None:
        self._news.set()
        if not task.cancelled():
            task.exception()  # retrieved, because a model that has left the call does not

    def _chunk(self, entry: Entry) -> dict[str, Any]:
        chunk = CallChunk(decode_chunk(entry.data))
        self._message.add_chunk(chunk, size=len(entry.data), whole=entry.whole)
        chunk["choices"] = self._choices(chunk.get("choices"), whole=entry.whole)
        if chunk.get("usage"):
            chunk["usage"] = CountedUsage(chunk["usage"])
        # Some upstreams leave the id out, some of them only in the chunk with the usage.
        if not chunk.get("id"):
            chunk["id"] = self._id
        return chunk

    def _choices(self, choices: object, *, whole: bool) -> list[CallChoice]:
        """The choices of a chunk as transforms get them: each with a delta, whose tool calls are numbered."""
        if type(choices) is list and len(choices) == 1 and type(choice := choices[0]) is dict:
            delta = choice.get("delta")
            if type(delta) is dict and not whole and choice.keys() <= _PLAIN and "tool_calls" not in delta:
                if self._one and choice.get("index"):
                    choice["index"] = 0
                return [CallChoice(choice)]  # as nearly every chunk has it
        listed = [each for each in choices if isinstance(each, Mapping)] if isinstance(choices, list) else []
        if self._one and listed:
            listed = [{**one_choice(listed), "index": 0}]
        return [CallChoice(self._as_delta(choice, whole=whole)) for choice in listed]

    def _as_delta(self, choice: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
        made, index = as_delta(choice, whole=whole), find_index(choice) or 0
        if calls := made["delta"].get("tool_calls"):
            numbered = self._numbers.setdefault(index, Calls()).number(calls)
            made["delta"] = {**made["delta"], "tool_calls": numbered}
        return {**made, "index": index}

    def _take(self, entries: list[Entry]) -> Flow:
        self._entries.extend(entries)
        self._space.clear()
        self._news.set()
        if (meter := self._access.meter) is not None and (cost := self._attempts.cost) is not None:
            meter.charge_call(cost, len(entries))
        return PAUSE

    async def _room(self) -> None:
        if self._entries:
            await self._space.wait()


_PLAIN = frozenset({"index", "delta", "finish_reason", "logprobs", "content_filter_results", "native_finish_reason"})
