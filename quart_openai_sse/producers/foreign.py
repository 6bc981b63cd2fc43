"""The chunks that a model yields of streams that are not `chat.call`s: which belong together, and which are whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart_openai_sse.errors import UpstreamFailed
from quart_openai_sse.producers.calls import CountedUsage
from quart_openai_sse.protocol.chunks import FAILED, as_delta, delta_of, find_index, finish_of, has_output, has_words
from quart_openai_sse.protocol.upstream_errors import failure_of, reported_error
from quart_openai_sse.protocol.usage import add_usage, find_usage, update_usage


class ForeignStreams:
    """The streams of other clients, such as OpenAI's SDK, whose chunks a model yields one after the other.

    The id of a chunk does not tell its stream: servers leave it out, send a new one with each chunk, change it once, or
    send the same one for all. So a chunk of an unknown id continues the stream before it, unless that is finished, or
    the chunk has a role as only the first one of a stream has it. *n* is how many choices were asked for.
    """

    def __init__(self, *, n: int) -> None:
        self._n = n
        self._streams: list[_Stream] = []
        self._by_id: dict[str, _Stream] = {}

    @property
    def cut(self) -> bool:
        """Whether one of the streams has a choice that has begun and is not finished."""
        return any(stream.open or stream.cut for stream in self._streams)

    @property
    def usage(self) -> dict[str, Any] | None:
        """The sum of the usage of all streams."""
        total: dict[str, Any] | None = None
        for stream in self._streams:
            total = add_usage(total, stream.usage)
        return total

    def take(self, chunk: Mapping[str, Any]) -> Mapping[str, Any]:
        """Notes a chunk, and returns it with deltas only: in place of a `message`, unless that repeats the deltas.

        Raises the error that the chunk reports, and `UpstreamFailed` if a choice says that its answer was interrupted.
        """
        choices = chunk.get("choices") or []
        if chunk.keys().isdisjoint(_OF_APIS) and not any("message" in choice for choice in choices):
            self._take_own(choices)
            return chunk
        usage = find_usage(chunk)
        stream = self._stream(str(chunk.get("id") or ""), choices, usage=usage is not None)
        if usage is not None:
            stream.usage = update_usage(stream.usage, usage)
        if (error := reported_error(chunk)) is not None:
            raise failure_of(error)
        taken = {**chunk, "choices": [stream.take(choice) for choice in choices]}
        return taken if usage is None else {**taken, "usage": CountedUsage(usage)}

    def _stream(self, origin: str, choices: list[Mapping[str, Any]], *, usage: bool) -> _Stream:
        """The stream of a chunk with the id *origin*. *usage*: it has usage."""
        stream = known = self._by_id.get(origin)
        if self._streams and (known is None or (known.over and any(map(_says, choices)))):
            stream = self._streams[-1]
        if stream is None or stream.ends_before(choices, known=stream is known, usage=usage):
            stream = _Stream(one=self._n == 1)
            self._streams.append(stream)
            # The ids of a stream that is over may come again.
            self._by_id = {each: other for each, other in self._by_id.items() if not other.over}
        self._by_id[origin] = stream
        return stream

    def _take_own(self, choices: list[Mapping[str, Any]]) -> None:
        """Notes a chunk that the model has made itself: its reason ends what the model has passed on before."""
        for choice in choices:
            if finish_of(choice.get("finish_reason")):
                for stream in self._streams:
                    stream.open.discard(0 if self._n == 1 else find_index(choice) or 0)


_OF_APIS = frozenset({"id", "object", "created", "model", "error", "detail"})
"""Members of which the chunks of every API have one, and the chunks that a model makes itself have none."""


class _Stream:
    """One of the streams. *one*: it has one choice, whatever index its chunks give it."""

    def __init__(self, *, one: bool) -> None:
        self.usage: dict[str, Any] | None = None
        self.open: set[int] = set()
        """The choices that have begun and are not finished."""
        self._one = one
        self._begun: set[int] = set()
        self._by_message = False
        """Whether it is an answer that was not streamed."""
        self.cut = False
        """Whether it turned out to be two streams, the first of which was cut after its first chunk."""
        self._role = False
        """Whether a role came."""
        self._plain = False
        """Whether text came without a role: then a role begins a stream, and is not sent with every chunk."""
        self._again = False
        """Whether a role came after the first output."""

    @property
    def over(self) -> bool:
        """Whether it has begun, and each choice that began is finished."""
        return bool(self._begun) and not self.open

    def ends_before(self, choices: list[Mapping[str, Any]], *, known: bool, usage: bool) -> bool:
        """Whether a chunk with these *choices* begins another stream.

        *known*: this stream has had the chunk's id. *usage*: the chunk has usage.
        """
        has_role = any((choice.get("delta") or {}).get("role") for choice in choices)
        whole = any(choice.get("message") and not has_output(choice.get("delta") or {}) for choice in choices)
        if self.open:
            return (has_role and self._plain) or (whole and not known)
        if not self._begun:  # the chunks so far had no output
            return has_role and self._role and not known
        if whole:
            return self._by_message or not known
        says = any(map(_says, choices))
        return (has_role and (says or not usage)) or (says and not known)

    def take(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Notes a choice, and returns it with a `delta` only."""
        index, reason = 0 if self._one else find_index(choice) or 0, finish_of(choice.get("finish_reason"))
        first = index not in self._begun
        delta = delta_of(choice, whole=first)
        if choice.get("error"):
            raise failure_of(choice["error"])
        if reason.lower() in FAILED:
            raise UpstreamFailed(f"The model's stream ended with the finish_reason {reason!r}.", status=502)
        whole = delta is choice.get("message")
        if delta.get("role"):
            self._role = True
            self._again |= bool(self.open)
        elif delta.get("content") and not reason:
            self._plain = True
            self.cut |= self._again
        if has_output(delta):
            if (first or has_words(delta)) and not reason and not whole:
                self.open.add(index)  # an answer that was not streamed needs no reason
            self._begun.add(index)
            self._by_message |= whole
        if reason:
            self._begun.add(index)
            self.open.discard(index)
        return {**as_delta(choice, whole=first), "index": index, "finish_reason": reason or None}


def _says(choice: Mapping[str, Any]) -> bool:
    return bool(finish_of(choice.get("finish_reason"))) or has_output(delta_of(choice))
