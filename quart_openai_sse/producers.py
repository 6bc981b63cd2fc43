"""What fills a stream: the intake of a log, an upstream's chunks as they come, an answer in one piece."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

from quart_openai_sse.errors import OpenAISSEError, StreamTooLong, UpstreamGarbled
from quart_openai_sse.logs import Writer
from quart_openai_sse.logs.entries import Entry
from quart_openai_sse.observers import StreamRecord
from quart_openai_sse.principal import Principal
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.protocol.completion import Completion, Signal
from quart_openai_sse.protocol.sse import EventTooLarge, SSEDecoder
from quart_openai_sse.protocol.upstream_errors import stream_error
from quart_openai_sse.retries import Attempt
from quart_openai_sse.upstream import Headers, Upstream, is_prompt

APP = "app"
"""What the record says of a model of the app's own."""


class Producer(Protocol):
    """Fills one stream. `run` returns when it is complete, raises when it failed, and can be cancelled."""

    upstream: str
    """What the record says of where it comes from."""
    completion: Completion
    prompt: bool
    """Whether it is over at once when it is cancelled, so that it needs no task of its own."""

    async def run(self, intake: Intake) -> None:
        """Gives everything to *intake*."""
        ...


class Attempts:
    """The requests upstream of one stream, as its record and its observers are told of them."""

    def __init__(self, record: StreamRecord, *, on_retry: Callable[[], None]) -> None:
        self._record = record
        self._on_retry = on_retry

    def begin(self, upstream: str) -> None:
        """See `Sink.begin`."""
        self._record.attempts += 1
        if self._record.upstream != APP:
            self._record.upstream = upstream

    def failed(self, attempt: Attempt) -> None:
        """See `Sink.failed`."""
        self._record.failures += (f"{attempt.upstream}: {attempt.error.code}",)
        if attempt.wait is not None:
            self._on_retry()


class Intake:
    """The producer's side of the log: counts and times what comes, and puts it together for `on_end`.

    Beyond *assemble* bytes of chunks there is no message; 0: nothing is put together.
    """

    def __init__(
        self,
        writer: Writer,
        record: StreamRecord,
        *,
        assemble: int = 0,
        on_first: Callable[[], None],
        charge: Callable[[], None] | None = None,
    ) -> None:
        self.record = record
        self.message = Assembly(limit=assemble) if assemble else None
        self.events: list[tuple[str, Any]] = []
        self.room = writer.room
        self._append: Callable[[list[Entry]], bool] = writer.append
        self._on_first = on_first
        self._charge = charge
        self._told = charge is not None or self.message is not None
        """Whether anybody is told of each entry."""
        self.began = monotonic()
        """When the stream began, by `time.monotonic`."""
        self._last = -math.inf

    def elapsed(self) -> float:
        """Seconds since the stream began."""
        return monotonic() - self.began

    def close(self) -> None:
        """Takes nothing more: what a producer still says once its stream is interrupted is not part of it."""
        self._append = _refuse

    def append(self, entries: list[Entry]) -> bool:
        """Adds entries to the log, output among the first of them. `False`: there is no room for more now.

        Raises `StreamTooLong` and `TokensSpent`.
        """
        room = self._append(entries)
        record, now = self.record, entries[-1].t
        for entry in entries:
            if not entry.event:
                record.chunks += 1
                record.bytes += len(entry.data)
        if now - self._last > record.longest_gap:
            self._note_gap(now)
        self._last = now
        if self._told:
            self._tell(entries)
        return room

    def _note_gap(self, now: float) -> None:
        """Nothing had come for longer than ever before."""
        if self.record.time_to_first_output is None:
            self.record.time_to_first_output = now
            self._on_first()
        else:
            self.record.longest_gap = now - self._last

    def _tell(self, entries: list[Entry]) -> None:
        if (message := self.message) is not None:
            for entry in entries:
                if entry.event:
                    self.events.append((entry.event, json.decode(entry.data)))
                else:
                    message.add(entry.data)
        if self._charge is not None:
            self._charge()


def _refuse(_: Sequence[Entry]) -> bool:
    raise OpenAISSEError("The stream has ended.")


# From an upstream ---------------------------------------------------------------------------------------------------


_DONE, _USAGE = Signal.DONE, Signal.USAGE  # an Enum's members take long to look up, for each event

_MOST_PREAMBLE = 1 << 20  # bytes before the first output
_MOST_DOCUMENT = 64 << 10  # bytes of what is no stream


class ChunkSink:
    """Splits an upstream's bytes into entries, as `Sink`. What one read brings is given to *take* at once, which says
    whether there is room for more; if not, *room* is waited for.

    But for the preamble: that is held back until the first output, so that of an attempt which fails before it,
    nothing is left.
    """

    def __init__(
        self,
        completion: Completion,
        *,
        attempts: Attempts | None = None,
        take: Callable[[list[Entry]], bool],
        room: Callable[[], Awaitable[None]],
        began: float = 0.0,
        max_event: int,
    ) -> None:
        self._completion = completion
        self._take = take
        self._room = room
        self._began = began
        self._attempts = attempts
        self._max_event = max_event
        self.fed = 0.0
        self._restart()

    def _restart(self) -> None:
        self._decoder = SSEDecoder(max_event_bytes=self._max_event)
        self._held: list[Entry] = []
        self._holding = True
        self._failure: OpenAISSEError | None = None
        self._document: bytearray | None = None
        self._over = False
        """Whether nothing more of it is taken as a stream."""

    @property
    def started(self) -> bool:
        """See `Sink.started`."""
        return self._completion.has_output

    def begin(self, upstream: str) -> None:
        """See `Sink.begin`."""
        self._completion.restart()
        self._restart()
        if self._attempts is not None:
            self._attempts.begin(upstream)

    def failed(self, attempt: Attempt) -> None:
        """See `Sink.failed`."""
        if self._attempts is not None:
            self._attempts.failed(attempt)

    def head(self, status: int, headers: Headers) -> None:
        """See `Sink.head`."""
        if headers.get("content-encoding", "identity") != "identity":
            self._fail(UpstreamGarbled("The upstream compressed its stream."))
        elif headers.get("content-type", "").startswith(("application/json", "text/html")):
            self._over, self._document = True, bytearray()

    def feed(self, data: bytes) -> bool:
        """See `Sink.feed`."""
        self.fed = now = monotonic()
        if self._over:
            return self._document is not None and self._collect(self._document, data)
        try:
            events = self._decoder.feed_data(data)
        except EventTooLarge as error:
            events = [event.data for event in error.events]
            self._fail(UpstreamGarbled(str(error)))
        entries = []
        t = now - self._began
        try:
            for event in events:
                signal = self._completion.feed(event)
                if signal is _DONE:  # whatever follows is not part of the stream
                    self._over, self._failure = True, None
                    break
                entries.append(Entry(event, "", t, signal is _USAGE))
        except OpenAISSEError as error:
            self._fail(error)
        room = True
        if self._holding:
            entries = self._hold(entries)
        if entries:
            try:
                room = self._take(entries)
            except OpenAISSEError as error:
                self._fail(error)
        return room and not self._over

    async def room(self) -> bool:
        """See `Sink.room`."""
        if self._failure is not None:
            raise self._failure
        if self._completion.done:
            return False
        if self._document is not None and len(self._document) >= _MOST_DOCUMENT:
            raise UpstreamGarbled("The upstream answered with a document instead of a stream.")
        await self._room()
        return True

    def finish(self) -> None:
        """See `Sink.finish`."""
        if self._failure is not None:
            raise self._failure
        if self._document is not None:
            raise _not_a_stream(bytes(self._document))
        self._completion.end()

    def _hold(self, entries: list[Entry]) -> list[Entry]:
        """What is to be taken now, of what was held back and *entries*: nothing before the first output."""
        self._held += entries
        if self._completion.has_output:
            entries, self._held, self._holding = self._held, [], False
            return entries
        if sum(len(entry.data) for entry in self._held) > _MOST_PREAMBLE and self._failure is None:
            self._fail(UpstreamGarbled("The upstream sends without end, and says nothing."))
        return []

    def _collect(self, document: bytearray, data: bytes) -> bool:
        document += data
        return len(document) < _MOST_DOCUMENT

    def _fail(self, error: OpenAISSEError) -> None:
        self._over, self._failure = True, error


def _not_a_stream(body: bytes) -> OpenAISSEError:
    """The failure of a server that answers a streaming request with status 200 and a document."""
    try:
        decoded = json.decode(body)
    except ValueError:
        decoded = None
    failure = stream_error(decoded) if isinstance(decoded, dict) else None
    return failure or UpstreamGarbled("The upstream answered with a document instead of a stream.")


class StreamProducer:
    """Relays an upstream's stream: each chunk's bytes as they came."""

    def __init__(
        self,
        upstream: Upstream,
        body: Mapping[str, Any],
        *,
        principal: Principal,
        attempts: Attempts,
        include_usage: bool,
        max_event: int,
    ) -> None:
        self.upstream = upstream.name
        self.prompt = is_prompt(upstream)
        self.completion = Completion(n=body.get("n") or 1)
        self._upstream = upstream
        self._principal = principal
        self._attempts = attempts
        self._body = streaming_body(body, include_usage=include_usage)
        self._max_event = max_event

    async def run(self, intake: Intake) -> None:
        """See `Producer.run`."""
        sink = ChunkSink(
            self.completion,
            attempts=self._attempts,
            take=intake.append,
            room=intake.room,
            began=intake.began,
            max_event=self._max_event,
        )
        await self._upstream.run(self._body, sink, principal=self._principal)


def streaming_body(body: Mapping[str, Any], *, include_usage: bool) -> dict[str, Any]:
    """*body* as it is sent upstream: streamed, and with usage asked for."""
    streamed = {**body, "stream": True}
    if include_usage:
        streamed["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return streamed


class AnswerProducer:
    """Relays an upstream's answer in one piece, untouched, as the only entry of its stream. It is its `Sink` too."""

    started = False
    fed = 0.0

    def __init__(
        self,
        upstream: Upstream,
        body: Mapping[str, Any],
        *,
        principal: Principal,
        attempts: Attempts,
        max_bytes: int,
    ) -> None:
        self.upstream = upstream.name
        self.prompt = is_prompt(upstream)
        self.failed = attempts.failed
        self.completion = Completion()
        self._upstream = upstream
        self._principal = principal
        self._attempts = attempts
        self._body = {member: value for member, value in body.items() if member != "stream_options"}
        self._max_bytes = max_bytes
        self._data = bytearray()

    async def run(self, intake: Intake) -> None:
        """See `Producer.run`."""
        await self._upstream.run(self._body, self, principal=self._principal)
        intake.append([Entry(bytes(self._data), "", intake.elapsed())])

    def begin(self, upstream: str) -> None:
        """See `Sink.begin`."""
        self.completion.restart()
        self._data.clear()
        self._attempts.begin(upstream)

    def head(self, status: int, headers: Headers) -> None:
        """See `Sink.head`."""

    def feed(self, data: bytes) -> bool:
        """See `Sink.feed`."""
        self._data += data
        return len(self._data) <= self._max_bytes

    async def room(self) -> bool:
        """See `Sink.room`."""
        raise StreamTooLong("The upstream's answer is too large.")

    def finish(self) -> None:
        """See `Sink.finish`."""
        try:
            answer = json.decode(self._data)
        except ValueError:
            raise UpstreamGarbled("The upstream's answer is not JSON.") from None
        if not isinstance(answer, dict):
            raise UpstreamGarbled("The upstream's answer is not a JSON object.")
        if (failure := stream_error(answer)) is not None:
            raise failure
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not all(map(_is_whole_choice, choices)):
            raise UpstreamGarbled("The upstream's answer has no choices with a message.")
        as_chunk = {**answer, "choices": [{**choice, "delta": choice["message"]} for choice in choices]}
        self.completion.feed(json.encode(as_chunk))


def _is_whole_choice(choice: object) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)


def whole_answer(data: bytes) -> bool:
    """Whether an entry is an answer in one piece rather than a chunk."""
    choices = json.decode(data).get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, dict) and "delta" not in first
