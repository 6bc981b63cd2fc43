"""An upstream that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from quart_openai_sse.errors import OpenAISSEError
from quart_openai_sse.principal import Principal
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.protocol.completion import Completion, Signal
from quart_openai_sse.protocol.sse import SSEDecoder, encode_data
from quart_openai_sse.upstreams import Sink
from quart_openai_sse.upstreams.refusals import refusal


def chunk(content: str | None = None, *, index: int = 0, finish_reason: str | None = None, **delta: Any) -> bytes:
    """A chunk as an upstream would send it, blank line included.

    *delta* holds further members of the delta: `chunk(reasoning_content="Let me see.")`.
    """
    if content is not None:
        delta["content"] = content
    return _chunk([{"index": index, "delta": delta, "finish_reason": finish_reason}])


def tool_call(
    name: str,
    arguments: Mapping[str, Any] | str = "{}",
    *,
    id: str = "call_1",  # noqa: A002 (OpenAI's name)
    index: int = 0,
) -> bytes:
    """A tool call as OpenAI sends it: a chunk with its *id* and *name*, then its *arguments* in two pieces.

    A second call of the same answer has another *id* and the next *index*; `finish("tool_calls")` comes after the last.
    """
    text = arguments if isinstance(arguments, str) else json.encode(arguments).decode()
    middle = len(text) // 2
    head = {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
    pieces = [{"index": index, "function": {"arguments": piece}} for piece in (text[:middle], text[middle:])]
    return b"".join(chunk(tool_calls=[part]) for part in (head, *pieces))


def finish(finish_reason: str = "stop", *, usage: Mapping[str, Any] | None = None) -> bytes:
    """The chunk that ends a choice, the *usage* if there is one, and `[DONE]`. A script without it is a cut stream."""
    counted = b"" if usage is None else _chunk([], usage=usage)
    return chunk(finish_reason=finish_reason) + counted + encode_data(b"[DONE]")


def error(message: str, *, code: str | int | None = None, type: str = "server_error") -> bytes:  # noqa: A002
    """An error within the stream, as an upstream would send it."""
    return encode_data(json.encode({"error": {"message": message, "type": type, "param": None, "code": code}}))


def refused(
    status: int, message: str = "The script refused.", *, code: str | None = None, retry_after: int | None = None
) -> OpenAISSEError:
    """A step that answers with an error status: the error that `OpenAIUpstream` makes of it."""
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return refusal(status, headers, json.encode({"error": {"message": message, "code": code}}))


def _chunk(choices: list[dict[str, Any]], **members: Any) -> bytes:
    head = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0, "model": "scripted"}
    return encode_data(json.encode({**head, "choices": choices, **members}))


class Gate:
    """A step at which a script waits until the test lets it on, so that no test needs to sleep."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()

    async def reached(self) -> None:
        """Returns when a script waits here, or has passed. Bound it by a timeout."""
        await self._reached.wait()

    def open(self) -> None:
        """Lets on whoever waits here, and whoever comes later."""
        self._opened.set()

    async def __call__(self) -> None:
        self._reached.set()
        await self._opened.wait()


Step = bytes | Exception | Awaitable[Any] | Callable[[], Awaitable[Any]]
"""One step of a script: bytes to send in one read, an error to raise, or something to wait for (a `Gate`)."""


class ScriptedUpstream:
    """Answers each request with the next of *scripts*, the last one for ever, and remembers what it was sent.

    A script is a list of steps; a text stands for its words as chunks, with a finish. `status` and `headers` answer
    otherwise than with a stream. A request without `stream` gets the chunks added up, in one piece.
    """

    name = "scripted"

    def __init__(
        self, *scripts: str | Sequence[Step], status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        """The bodies of the requests so far."""
        self.principals: list[Principal] = []
        self.running = 0
        """How many requests are being answered."""
        self.cancelled = 0
        """How many were cancelled before their end."""
        self.closed = asyncio.Event()
        """Set whenever a request is over, in whatever way."""
        self._scripts = [_script(script) if isinstance(script, str) else script for script in scripts or ("Hello.",)]
        self._status = status
        self._headers = {"content-type": "text/event-stream", **(headers or {})}

    async def run(self, request: Mapping[str, Any], sink: Sink, *, principal: Principal) -> None:
        """See `Upstream.run`."""
        script = self._scripts[min(len(self.requests), len(self._scripts) - 1)]
        self.requests.append(dict(request))
        self.principals.append(principal)
        self.running += 1
        self.closed.clear()
        try:
            await self._play(script, sink if request.get("stream") else _Whole(sink))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            self.closed.set()

    async def models(self, *, principal: Principal) -> list[dict[str, Any]]:
        """See `Upstream.models`."""
        return [{"id": "scripted", "object": "model", "created": 0, "owned_by": "scripted"}]

    async def aclose(self) -> None:
        """See `Upstream.aclose`."""

    async def _play(self, script: Sequence[Step], sink: Sink) -> None:
        sink.head(self._status, self._headers)
        if self._status != 200:
            body = b"".join(step for step in script if isinstance(step, bytes))
            raise refusal(self._status, self._headers, body)
        for step in script:
            if isinstance(step, Exception):
                raise step
            if not isinstance(step, bytes):
                await (step() if callable(step) else step)
            elif not sink.feed(step) and not await sink.room():
                return
        sink.finish()


class _Whole:
    """The sink of an answer in one piece: adds up the chunks of a script, and passes on whatever else is in it."""

    started = False
    fed = 0.0

    def __init__(self, sink: Sink) -> None:
        self.begin, self.failed, self.head, self.room = sink.begin, sink.failed, sink.head, sink.room
        self._feed = sink.feed
        self._finish = sink.finish
        self._decoder = SSEDecoder()
        self._completion = Completion()
        self._message: Assembly | None = None

    def feed(self, data: bytes) -> bool:
        if not data.startswith(b"data:"):
            return self._feed(data)
        self._message = self._message or Assembly()
        for event in self._decoder.feed_raw(data):
            if self._completion.feed(event.data) is not Signal.DONE:
                self._message.add(event.data)
        return True

    def finish(self) -> None:
        if self._message is not None:
            self._completion.end()
            self._feed(json.encode(self._message.message()))
        self._finish()


def _script(text: str) -> list[Step]:
    words = text.split(" ")
    pieces = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
    return [chunk("", role="assistant"), *(chunk(piece) for piece in pieces), finish()]
