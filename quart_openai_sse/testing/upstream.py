"""The scripted upstream, and the steps of its scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from quart_openai_sse.errors import OpenAISSEError
from quart_openai_sse.flow import ENOUGH, MORE, PAUSE, Flow
from quart_openai_sse.principal import Principal
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.protocol.completeness import Completion, Signal
from quart_openai_sse.protocol.sse import SSEDecoder, encode_data
from quart_openai_sse.upstreams import Sink
from quart_openai_sse.upstreams.refusals import refusal

Step = bytes | Exception | Awaitable[Any] | Callable[[], Awaitable[Any]]
"""One step of a script: bytes that arrive in one read, an error to raise, or an awaitable to wait for (a `Gate`)."""


class ScriptedUpstream:
    """An upstream that answers each request with the next of *scripts*, and repeats the last one.

    A script is a list of steps; a text is sent word by word, with a finish. With a *status* that is not from 200
    to 299 the script's bytes are the body of an error response; *headers* are added to the response. A request without
    `stream` gets the script's chunks assembled to one answer. The upstream records the requests.
    """

    name = "scripted"

    def __init__(
        self, *scripts: str | Sequence[Step], status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        """The bodies of all requests."""
        self.principals: list[Principal] = []
        """The principals of all requests."""
        self.running = 0
        """The number of requests that are running."""
        self.cancelled = 0
        """The number of requests that were cancelled before they were complete."""
        self.closed = asyncio.Event()
        """Set when a request ends, cleared when the next one begins."""
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
            await self._play(script, sink if request.get("stream") else _WholeAnswer(sink, n=request.get("n") or 1))
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
        if not 200 <= self._status < 300:
            body = b"".join(step for step in script if isinstance(step, bytes))
            raise refusal(self._status, self._headers, body)
        for step in script:
            if isinstance(step, Exception):
                raise step
            if not isinstance(step, bytes):
                await (step() if callable(step) else step)
            elif (flow := sink.feed(step)) is ENOUGH:
                break
            elif flow is PAUSE:
                await sink.room()
        sink.finish()


def _script(text: str) -> list[Step]:
    words = text.split(" ")
    pieces = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
    return [chunk("", role="assistant"), *(chunk(piece) for piece in pieces), finish()]


class _WholeAnswer:
    """The sink for a request without `stream`: assembles the script's chunks; passes on bytes that are no events."""

    started = False
    fed = 0.0

    def __init__(self, sink: Sink, *, n: int) -> None:
        self.begin, self.failed, self.head, self.room = sink.begin, sink.failed, sink.head, sink.room
        self._feed = sink.feed
        self._finish = sink.finish
        self._decoder = SSEDecoder()
        self._completion = Completion(n=n)
        self._n = n
        self._message: Assembly | None = None

    def feed(self, data: bytes) -> Flow:
        if not data.startswith(b"data:"):
            return self._feed(data)
        self._message = self._message or Assembly(n=self._n)
        for event in self._decoder.feed_raw(data):
            if self._completion.feed(event.data) is not Signal.DONE:
                self._message.add(event.data)
        return MORE

    def finish(self) -> None:
        if self._message is not None:
            self._completion.end()
            self._feed(json.encode(self._message.message()))
        self._finish()


class Gate:
    """A step at which a script waits until the test calls `open`, so that no test needs to sleep."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()

    async def reached(self) -> None:
        """Waits until a script has reached the gate. Use a timeout around it."""
        await self._reached.wait()

    def open(self) -> None:
        """Lets all scripts pass that wait at the gate or reach it later."""
        self._opened.set()

    async def __call__(self) -> None:
        self._reached.set()
        await self._opened.wait()


# Steps ----------------------------------------------------------------------------------------------------------------


def chunk(content: str | None = None, *, index: int = 0, finish_reason: str | None = None, **delta: Any) -> bytes:
    """A chunk as an upstream sends it, with its blank line.

    *delta* are further members of the delta: `chunk(reasoning_content="Let me see.")`.
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
    """A tool call as OpenAI sends it: a chunk with *id* and *name*, then two chunks with the *arguments*.

    For a second call in the same answer, pass another *id* and the next *index*. Let `finish("tool_calls")` follow.
    """
    text = arguments if isinstance(arguments, str) else json.encode(arguments).decode()
    middle = len(text) // 2
    head = {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
    pieces = [{"index": index, "function": {"arguments": piece}} for piece in (text[:middle], text[middle:])]
    return b"".join(chunk(tool_calls=[part]) for part in (head, *pieces))


def finish(finish_reason: str = "stop", *, usage: Mapping[str, Any] | None = None) -> bytes:
    """The chunk that ends the choice, a chunk with the *usage* if given, and `[DONE]`. Without it a stream is cut."""
    counted = b"" if usage is None else _chunk([], usage=usage)
    return chunk(finish_reason=finish_reason) + counted + encode_data(b"[DONE]")


def error(message: str, *, code: str | int | None = None, type: str = "server_error") -> bytes:  # noqa: A002
    """An error event within the stream, as an upstream sends it."""
    return encode_data(json.encode({"error": {"message": message, "type": type, "param": None, "code": code}}))


def refused(
    status: int, message: str = "The script refused.", *, code: str | None = None, retry_after: int | None = None
) -> OpenAISSEError:
    """A step that responds with an error *status*: the error that `OpenAIUpstream` raises for such a response."""
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return refusal(status, headers, json.encode({"error": {"message": message, "code": code}}))


def _chunk(choices: list[dict[str, Any]], **members: Any) -> bytes:
    head = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0, "model": "scripted"}
    return encode_data(json.encode({**head, "choices": choices, **members}))
