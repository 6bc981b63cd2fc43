"""The chunks that a model yields of streams that are not `chat.call`s: which belong together, and which are whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart_openai_sse.errors import ModelFailed, UpstreamFailed
from quart_openai_sse.producers.calls import CountedUsage
from quart_openai_sse.protocol.chunks import (
    FAILED,
    as_delta,
    delta_of,
    find_index,
    finish_of,
    has_output,
    has_words,
    one_choice,
)
from quart_openai_sse.protocol.pieces import Calls
from quart_openai_sse.protocol.upstream_errors import failure_of, reported_error
from quart_openai_sse.protocol.usage import add_usage, find_usage, update_usage


class ForeignStreams:
    """The streams of other clients, such as OpenAI's SDK, whose chunks a model yields one after the other.

    The id of a chunk does not tell its stream: servers leave it out, send a new one with each chunk, change it once, or
    send the same one for all. So a chunk continues the stream before it, unless that is finished, or the chunk has a
    role as only the first one of a stream has it. *n* is how many choices were asked for.
    """

    def __init__(self, *, n: int) -> None:
        self.chunks = 0
        """The chunks of all streams."""
        self._n = n
        self._streams: list[_Stream] = []
        self._by_id: dict[str, _Stream] = {}

    @property
    def cut(self) -> bool:
        """Whether one of the streams has a choice that has begun and is not finished."""
        return any(choice.open or choice.cut for stream in self._streams for choice in stream.choices.values())

    @property
    def usage(self) -> dict[str, Any] | None:
        """The sum of the usage of all streams."""
        total: dict[str, Any] | None = None
        for stream in self._streams:
            total = add_usage(total, stream.usage)
        return total

    def take(self, chunk: Mapping[str, Any]) -> Mapping[str, Any]:
        """Notes a chunk, and returns it with deltas only: in place of a `message`, unless that repeats the deltas.

        Raises the error that the chunk reports, `UpstreamFailed` if a choice says that its answer was interrupted, and
        `ModelFailed` if the model has made such a chunk itself.
        """
        error = reported_error(chunk)
        listed = None if error else chunk.get("choices")  # beside an error they may be anything
        choices = [each for each in (listed if isinstance(listed, list) else ()) if isinstance(each, Mapping)]
        if self._n == 1 and choices:
            choices = [{**one_choice(choices), "index": 0}]
        if chunk.keys().isdisjoint(_OF_APIS) and not any("message" in choice for choice in choices):
            self._take_own(choices)
            return {**chunk, "choices": choices}
        self.chunks += 1
        usage = find_usage(chunk)
        stream = self._stream(str(chunk.get("id") or ""), choices, usage=usage is not None)
        if usage is not None:
            stream.usage = update_usage(stream.usage, usage)
        if error:
            raise failure_of(error)
        taken = {**chunk, "choices": [stream.take(choice) for choice in choices]}
        return taken if usage is None else {**taken, "usage": CountedUsage(usage)}

    def _stream(self, origin: str, choices: list[Mapping[str, Any]], *, usage: bool) -> _Stream:
        """The stream of a chunk with the id *origin*. *usage*: it has usage."""
        stream = known = self._by_id.get(origin)
        if self._streams and (known is None or (known.over and any(map(_has_output_or_finish, choices)))):
            stream = self._streams[-1]
        if stream is None or stream.ends_before(choices, known=stream is known, usage=usage):
            stream = _Stream()
            self._streams.append(stream)
            # The ids of a stream that is over may come again.
            self._by_id = {each: other for each, other in self._by_id.items() if not other.over}
        stream.steady = stream is known
        self._by_id[origin] = stream
        return stream

    def _take_own(self, choices: list[Mapping[str, Any]]) -> None:
        """Notes a chunk that the model has made itself: its reason ends what the model has passed on before."""
        for choice in choices:
            reason = finish_of(choice.get("finish_reason"))
            if reason.lower() in FAILED:
                raise ModelFailed(f"The app's model ended its answer with the finish_reason {reason!r}.")
            if reason:
                for stream in self._streams:
                    if (known := stream.choices.get(find_index(choice) or 0)) is not None:
                        known.open = False


_OF_APIS = frozenset({"id", "object", "created", "model", "error", "detail"})
"""Members of which the chunks of every API have one, and the chunks that a model makes itself have none."""


class _Stream:
    """One of the streams."""

    def __init__(self) -> None:
        self.usage: dict[str, Any] | None = None
        self.choices: dict[int, _Choice] = {}
        self.steady = False
        """Whether its last chunk had the id of an earlier one."""

    @property
    def begun(self) -> bool:
        """Whether a choice has begun."""
        return any(choice.begun for choice in self.choices.values())

    @property
    def open(self) -> bool:
        """Whether a choice has begun and is not finished."""
        return any(choice.open for choice in self.choices.values())

    @property
    def over(self) -> bool:
        """Whether it has begun, and each choice that began is finished."""
        return self.begun and not self.open

    def ends_before(self, choices: list[Mapping[str, Any]], *, known: bool, usage: bool) -> bool:
        """Whether a chunk with these *choices* begins another stream.

        *known*: this stream has had the chunk's id. *usage*: the chunk has usage.
        """
        roles = [self.choices.get(find_index(choice) or 0) for choice in choices if _is_first(choice)]
        message = any(choice.get("message") and not has_output(choice.get("delta") or {}) for choice in choices)
        if self.open:
            # Some servers send a role with every chunk, and others with the first chunk of each kind of output.
            new_id = self.steady and not known
            begins = any(each and each.open and (each.plain or (each.bare and new_id)) for each in roles)
            return begins or (message and not known)
        if not self.begun:  # the chunks so far had no output
            return any(each and each.role for each in roles) and not known
        if message:
            return not known or any(choice.by_message for choice in self.choices.values())
        says = any(map(_has_output_or_finish, choices))
        return (bool(roles) and (says or not usage)) or (says and not known)

    def take(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Notes a choice, and returns it with a `delta` only."""
        index = find_index(choice) or 0
        return self.choices.setdefault(index, _Choice()).take({**choice, "index": index})


class _Choice:
    """One choice of a stream, as far as it has come."""

    def __init__(self) -> None:
        self.begun = self.open = self.by_message = self.cut = False
        """Whether it has begun; is not finished; came as a message; turned out to be two, the first of them cut."""
        self.role = False
        """Whether a role came."""
        self.bare = self.plain = False
        """Whether some output came without a role; whether the last one did, and was text: a role begins a stream."""
        self._by_delta = self._text = self._again = False
        """Whether a delta had output; whether there was text; and whether text with a role came after that."""
        self._calls = Calls()

    def take(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Notes a part of the choice, and returns it with a `delta` only, whose tool calls are numbered."""
        delta, reason = delta_of(choice, whole=not self._by_delta), finish_of(choice.get("finish_reason"))
        if choice.get("error"):
            raise failure_of(choice["error"])
        if reason.lower() in FAILED:
            raise UpstreamFailed(f"The model's stream ended with the finish_reason {reason!r}.", status=502)
        message = delta is choice.get("message")
        taken = as_delta(choice, whole=not self._by_delta)
        if calls := taken["delta"].get("tool_calls"):
            taken["delta"] = {**taken["delta"], "tool_calls": self._calls.number(calls)}
        if has_output(delta):
            self._note_role(delta, reason)
            # An answer that was not streamed needs no reason.
            self.open |= not reason and not message and (not self.begun or has_words(delta))
            self.begun = True
            self.by_message |= message
            self._by_delta |= message or delta is choice.get("delta")
        self.role |= bool(delta.get("role"))
        if reason:
            self.begun, self.open = True, False
        return {**taken, "finish_reason": reason or None}

    def _note_role(self, delta: Mapping[str, Any], reason: str) -> None:
        """Notes whether text comes with a role, and whether it has come without one before."""
        text = bool(delta.get("content"))
        if text and delta.get("role"):
            self._again |= self.open and self._text
        elif text and not reason:
            self.cut |= self._again
        self.plain = text and not delta.get("role")
        self.bare |= not delta.get("role")
        self._text = text
        if not text:
            self._again = False


def _is_first(choice: Mapping[str, Any]) -> bool:
    """Whether it looks like the first chunk of a choice: a role, and nothing but text beside it."""
    delta = choice.get("delta")
    if not isinstance(delta, Mapping) or not delta.get("role") or finish_of(choice.get("finish_reason")):
        return False
    return not has_output({member: value for member, value in delta.items() if member != "content"})


def _has_output_or_finish(choice: Mapping[str, Any]) -> bool:
    return bool(finish_of(choice.get("finish_reason"))) or has_output(delta_of(choice))
