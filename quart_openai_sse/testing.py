"""For tests, yours and ours: a scripted upstream, readers of a streamed response, a real server, the log's contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, Unpack

from anyio.from_thread import BlockingPortal, start_blocking_portal

from quart_openai_sse.errors import (
    InvalidLastEventID,
    KeyReused,
    OpenAISSEError,
    StreamExpired,
    StreamNotFound,
    StreamStopped,
    UpstreamTruncated,
)
from quart_openai_sse.logs import Reader, StreamLog, Writer
from quart_openai_sse.logs.entries import END_ID, Batch, End, Entry
from quart_openai_sse.loopback import serve_app
from quart_openai_sse.principal import Principal
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.protocol.completion import Completion, Signal
from quart_openai_sse.protocol.sse import ServerSentEvent, SSEDecoder, encode_data
from quart_openai_sse.simulator import Exchange, Simulator, SimulatorOptions, serve_simulator
from quart_openai_sse.upstreams import Sink
from quart_openai_sse.upstreams.refusals import refusal

__all__ = [
    "Gate",
    "ReadStream",
    "ScriptedUpstream",
    "StreamLogContract",
    "ThreadedSimulator",
    "chunk",
    "error",
    "finish",
    "read",
    "refused",
    "serve_app",
    "simulator_thread",
    "tool_call",
]

T = TypeVar("T")


# An upstream that does as it is told --------------------------------------------------------------------------------


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


# What a client saw --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadStream:
    """A streamed response, read to its end or to where it was cut."""

    events: list[ServerSentEvent]
    """Every event, in either format."""
    chunks: list[dict[str, Any]] = field(default_factory=list)
    """The chunks of OpenAI's format."""
    text: str = ""
    """What the first choice said, in either format."""
    ids: list[str] = field(default_factory=list)
    outcome: str = "cut"
    """`completed`, `failed`, `stopped`; `cut` if it just broke off."""
    error: dict[str, Any] | None = None
    """The error object, if there was one."""
    reasoning: str = ""
    """What the first choice thought before it spoke (`reasoning_content` or `reasoning`), in OpenAI's format."""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """The tool calls of the first choice, put together as in a message, in OpenAI's format."""
    finish_reason: str | None = None
    """Why the first choice ended, by the upstream's account."""
    usage: dict[str, Any] | None = None
    """What it cost, if the client asked to be told (`stream_options.include_usage`), or in the `text` format."""

    @property
    def last_event_id(self) -> str:
        """What to resume from."""
        return self.ids[-1] if self.ids else ""


async def read(body: bytes | AsyncIterable[bytes]) -> ReadStream:
    """Reads a streamed response: its bytes, or what iterates over them (`response.aiter_raw()`)."""
    decoder = SSEDecoder()
    events: list[ServerSentEvent] = []
    if isinstance(body, bytes):
        events = decoder.feed(body)
    else:
        async for data in body:
            events += decoder.feed(data)
    return _read_stream(events)


def _read_stream(events: list[ServerSentEvent]) -> ReadStream:
    text, outcome, error = "", "cut", None
    chunks: list[dict[str, Any]] = []
    assembly = Assembly()
    told: dict[str, Any] = {}
    for event in events:
        if event.data == "[DONE]":
            outcome = "completed"
            continue
        data = json.decode(event.data.encode())
        if event.event == "delta":
            text += data["text"]
        elif event.event in ("completed", "failed", "stopped"):
            outcome, error, told = event.event, data.get("error"), data
        elif event.event == "message" and "error" in data:
            error = data["error"]
            outcome = "stopped" if error["code"] == "stopped" else "failed"
        elif event.event == "message":
            chunks.append(data)
            assembly.add_chunk(data)
            text += "".join(
                choice["delta"].get("content") or "" for choice in data["choices"] if choice.get("index", 0) == 0
            )
    ids = [event.id for event in events if event.id]
    choices: list[dict[str, Any]] = (assembly.message() or {}).get("choices", [])
    message: dict[str, Any] = next((choice["message"] for choice in choices if choice["index"] == 0), {})
    return ReadStream(
        events,
        chunks,
        text,
        ids,
        outcome,
        error,
        reasoning=message.get("reasoning_content") or message.get("reasoning") or "",
        tool_calls=message.get("tool_calls") or [],
        finish_reason=assembly.finish_reasons.get(0) or told.get("finish_reason"),
        usage=assembly.usage or told.get("usage"),
    )


# A server for any test ----------------------------------------------------------------------------------------------


@dataclass
class ThreadedSimulator(Simulator):
    """A simulator on an event loop in a thread of its own, to be asked from any loop, or from none."""

    portal: BlockingPortal
    """Its event loop, as anyio reaches it from elsewhere."""

    async def ended(self, number: int = 1) -> Exchange:
        """See `Simulator.ended`."""
        return await asyncio.wrap_future(self.portal.start_task_soon(super().ended, number))

    async def until(self, condition: Callable[[], T]) -> T:
        """See `Counters.until`, which belongs to the simulator's own loop."""
        return await asyncio.wrap_future(self.portal.start_task_soon(self.counters.until, condition))


@contextmanager
def simulator_thread(**options: Unpack[SimulatorOptions]) -> Iterator[ThreadedSimulator]:
    """The simulator in a thread of its own: for tests without an event loop, and clients that block theirs."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve_simulator(**options)) as simulator,
    ):
        yield ThreadedSimulator(simulator.base_url, simulator.counters, portal)


# What every stream log does -----------------------------------------------------------------------------------------


class StreamLogContract:
    """The tests that every `StreamLog` passes. Inherit from it, and give a fixture `log`.

    Its streams are retained for a moment only if the fixture says so; nothing here waits for an expiry.
    """

    async def test_what_is_appended_is_read_with_dense_ids(self, log: StreamLog) -> None:
        """A reader gets the entries in order, numbered from 1, and the end with the last of them."""
        writer = await _create(log, "a")
        writer.append([_entry("one"), _entry("two")])
        writer.append([_entry("three")])
        await writer.close(_COMPLETED)
        assert await _drain(await log.read("a")) == ([(1, "one"), (2, "two"), (3, "three")], _COMPLETED)

    async def test_every_resume_point_gives_exactly_the_rest(self, log: StreamLog) -> None:
        """Behind entry n come n+1 and all that follow."""
        writer = await _create(log, "a")
        writer.append([_entry(str(number)) for number in range(1, 8)])
        await writer.close(_COMPLETED)
        for after in range(1, 8):
            entries, end = await _drain(await log.read("a", after=str(after)))
            assert entries == [(number, str(number)) for number in range(after + 1, 8)]
            assert end == _COMPLETED

    async def test_a_reader_who_has_the_end_gets_nothing(self, log: StreamLog) -> None:
        """The end's id is a place like any other."""
        writer = await _create(log, "a")
        writer.append([_entry("one")])
        await writer.close(_COMPLETED)
        reader = await log.read("a", after=END_ID)
        assert reader.at_end
        assert await _drain(reader) == ([], None)

    async def test_a_reader_wakes_on_append_and_on_close(self, log: StreamLog) -> None:
        """Live is reading from the beginning."""
        writer = await _create(log, "a")
        reader = await log.read("a")
        reading = asyncio.ensure_future(anext(aiter(reader)))
        await asyncio.sleep(0)
        writer.append([_entry("one")])
        async with asyncio.timeout(5):
            assert [entry.data for entry in (await reading).entries] == [b"one"]
        draining = asyncio.ensure_future(_drain(reader))
        await asyncio.sleep(0)
        await writer.close(_COMPLETED)
        async with asyncio.timeout(5):
            assert await draining == ([], _COMPLETED)

    async def test_two_readers_get_the_same(self, log: StreamLog) -> None:
        """Each at its own place."""
        writer = await _create(log, "a")
        writer.append([_entry("one"), _entry("two")])
        late = await log.read("a", after="1")
        early = await log.read("a")
        writer.append([_entry("three")])
        await writer.close(_COMPLETED)
        assert await _drain(early) == ([(1, "one"), (2, "two"), (3, "three")], _COMPLETED)
        assert await _drain(late) == ([(2, "two"), (3, "three")], _COMPLETED)

    async def test_the_first_end_wins(self, log: StreamLog) -> None:
        """A stream ends once."""
        writer = await _create(log, "a")
        await writer.close(End("stopped", "enough"))
        await writer.close(_COMPLETED)
        _, end = await _drain(await log.read("a"))
        assert end is not None
        assert (end.outcome, end.reason) == ("stopped", "enough")

    async def test_a_key_that_exists_is_attached_to(self, log: StreamLog) -> None:
        """The same digest attaches, another one is refused."""
        await _create(log, "a", digest="x")
        assert await log.create("a", digest="x", retain=True) is None
        with _raises(KeyReused):
            await log.create("a", digest="y", retain=True)

    async def test_a_stream_that_failed_without_an_entry_does_not_hold_its_key(self, log: StreamLog) -> None:
        """Whoever asks again starts anew."""
        writer = await _create(log, "a")
        await writer.close(End("failed", error=UpstreamTruncated()))
        assert await log.create("a", digest="other", retain=True) is not None

    async def test_an_unknown_stream_is_not_found(self, log: StreamLog) -> None:
        """Neither to read nor to stop."""
        with _raises(StreamNotFound):
            await log.read("nowhere")
        with _raises(StreamNotFound):
            await log.stop("nowhere", "because")

    async def test_a_last_event_id_that_is_no_place_is_refused(self, log: StreamLog) -> None:
        """Never a silent full replay."""
        writer = await _create(log, "a")
        writer.append([_entry("one")])
        for after in ("2", "-1", "0", "01", "1.0", "x", "１", "9" * 40, END_ID):  # noqa: RUF001
            with _raises(InvalidLastEventID):
                await log.read("a", after=after)

    async def test_a_stop_reaches_the_producer(self, log: StreamLog) -> None:
        """With its reason; a second one changes nothing."""
        writer = await _create(log, "a")
        told: asyncio.Queue[str] = asyncio.Queue()
        writer.watch(stopped=told.put_nowait, left=lambda: told.put_nowait("left"), linger=60)
        await log.stop("a", "first")
        await log.stop("a", "second")
        async with asyncio.timeout(5):
            assert await told.get() == "first"
        late: asyncio.Queue[str] = asyncio.Queue()
        writer.watch(stopped=late.put_nowait, left=lambda: late.put_nowait("left"), linger=60)
        async with asyncio.timeout(5):
            assert await late.get() == "first"
        assert told.empty()

    async def test_the_producer_is_told_that_the_last_reader_has_left(self, log: StreamLog) -> None:
        """Not while there is one; nor if one comes back before the linger is over; nor when the stream has ended."""
        writer = await _create(log, "a")
        one, two = await log.read("a"), await log.read("a")
        left = asyncio.Event()
        writer.watch(stopped=lambda _: None, left=left.set, linger=0)
        await one.aclose()
        await one.aclose()
        await _turns()
        assert not left.is_set()
        await two.aclose()
        back = await log.read("a")
        await _turns()
        assert not left.is_set()
        await back.aclose()
        async with asyncio.timeout(5):
            await left.wait()
        left.clear()
        await writer.close(_COMPLETED)
        await (await log.read("a")).aclose()
        await _turns()
        assert not left.is_set()

    async def test_the_producer_is_told_that_nobody_ever_read(self, log: StreamLog) -> None:
        """The linger runs from the beginning."""
        writer = await _create(log, "a")
        left = asyncio.Event()
        writer.watch(stopped=lambda _: None, left=left.set, linger=0)
        async with asyncio.timeout(5):
            await left.wait()

    async def test_opened_waits_for_output_or_raises_the_failure(self, log: StreamLog) -> None:
        """It decides whether a refusal can still be a status."""
        writer = await _create(log, "a")
        await (await log.read("a")).opened(0)  # nothing yet: time is up
        waiting, beating = await log.read("a", heartbeat=0.001), await log.read("a", heartbeat=0.001)
        opened = asyncio.ensure_future(waiting.opened(60))
        for _ in range(5):  # heartbeats, none of which is output
            assert not (await anext(aiter(beating))).entries
        assert not opened.done()
        opened.cancel()
        await waiting.aclose()
        await beating.aclose()
        writer.append([_entry("one")])
        await (await log.read("a")).opened(60)
        await writer.close(End("failed", error=UpstreamTruncated()))
        await (await log.read("a")).opened(60)  # there was output: the failure is an event

        failed = await _create(log, "b")
        reader = await log.read("b")
        await failed.close(End("failed", error=UpstreamTruncated()))
        with _raises(UpstreamTruncated):
            await reader.opened(60)

        stopped = await _create(log, "c")
        await stopped.close(End("stopped", "enough"))
        with _raises(StreamStopped):
            await (await log.read("c")).opened(60)

    async def test_silence_gives_an_empty_batch(self, log: StreamLog) -> None:
        """For the heartbeat, and the reader goes on."""
        writer = await _create(log, "a")
        reader = await log.read("a", heartbeat=0.001)
        async with asyncio.timeout(5):
            assert not (await anext(aiter(reader))).entries
            writer.append([_entry("one")])
            while not (batch := await anext(aiter(reader))).entries:
                pass
        assert [entry.data for entry in batch.entries] == [b"one"]

    async def test_what_is_not_retained_is_given_up_when_read(self, log: StreamLog) -> None:
        """Its upstream is paused meanwhile, and its beginning cannot be read again."""
        writer = await _create(log, "a", retain=False)
        reader = await log.read("a")
        assert writer.append([_entry("one")])
        assert not writer.append([Entry(b"x" * (1 << 20))])
        room = asyncio.ensure_future(writer.room())
        await _turns()
        assert not room.done()
        assert len((await anext(aiter(reader))).entries) == 2
        async with asyncio.timeout(5):
            await room
        with _raises(StreamExpired):
            await log.read("a")

    async def test_what_is_not_retained_is_read_from_its_beginning_only(self, log: StreamLog) -> None:
        """Also where its first reader has left without taking anything."""
        writer = await _create(log, "a", retain=False)
        await (await log.read("a")).aclose()
        writer.append([_entry("one"), _entry("two")])
        with _raises(StreamExpired):
            await log.read("a", after="1")
        reader = await log.read("a")
        await writer.close(_COMPLETED)
        assert await _drain(reader) == ([(1, "one"), (2, "two")], _COMPLETED)


_COMPLETED = End("completed", finish_reasons={0: "stop"}, usage={"total_tokens": 3})


def _entry(text: str) -> Entry:
    return Entry(text.encode(), "", 0.5)


async def _create(log: StreamLog, key: str, *, digest: str = "", retain: bool = True) -> Writer:
    writer = await log.create(key, digest=digest, retain=retain)
    assert writer is not None
    return writer


async def _turns() -> None:
    """Time for what is due at once."""
    for _ in range(5):
        await asyncio.sleep(0)


async def _drain(reader: Reader) -> tuple[list[tuple[int, str]], End | None]:
    entries: list[tuple[int, str]] = []
    end = None
    batch: Batch
    async for batch in reader:
        entries += [(batch.first_id + place, entry.data.decode()) for place, entry in enumerate(batch.entries)]
        end = batch.end
    await reader.aclose()
    return entries, end


@contextmanager
def _raises(expected: type[OpenAISSEError]) -> Iterator[None]:
    """As pytest's, which is not needed to ship this."""
    try:
        yield
    except expected:
        return
    raise AssertionError(f"{expected.__name__} was not raised")
