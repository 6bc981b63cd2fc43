"""One Chat Completions stream: what each chunk means, whether the stream is whole, and the message it adds up to."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from quart_openai_sse import _json
from quart_openai_sse.errors import OpenAISSEError, UpstreamFailed, UpstreamGarbled, UpstreamRefused, UpstreamTruncated

Chunk = Mapping[str, Any]
"""A `chat.completion.chunk` as OpenAI documents it, unknown members included."""

DONE = b"[DONE]"


class Signal(Enum):
    """What a chunk says about the stream as a whole."""

    NOTHING = "empty deltas, roles, usage"
    OUTPUT = "the first or further output of a choice"
    FINISH = "a finish_reason, and no choice is left open"
    DONE = "[DONE]"
    EOF = "the body ended with every expected choice finished"


class State(Enum):
    """Where a stream stands."""

    PREAMBLE = "no output yet: a failure can still be a status, or a retry"
    STREAMING = "a choice has begun and is not finished"
    FINISHED = "every choice that began is finished"
    DONE = "complete"


TRANSITIONS: Mapping[State, Mapping[Signal, State]] = {
    State.PREAMBLE: {
        Signal.NOTHING: State.PREAMBLE,
        Signal.OUTPUT: State.STREAMING,
        Signal.FINISH: State.FINISHED,
    },
    State.STREAMING: {
        Signal.NOTHING: State.STREAMING,
        Signal.OUTPUT: State.STREAMING,
        Signal.FINISH: State.FINISHED,
    },
    State.FINISHED: {
        Signal.NOTHING: State.FINISHED,
        Signal.OUTPUT: State.STREAMING,  # choices may come one after another
        Signal.FINISH: State.FINISHED,
        Signal.DONE: State.DONE,
        Signal.EOF: State.DONE,
    },
    State.DONE: {},
}
"""A signal that is missing from its row means that the stream was cut: [DONE] or the body's end came too early."""


class Completion:
    """Follows one stream of *n* choices, chunk by chunk, and puts its message together.

    Beyond *assemble* bytes of chunks `message()` is `None`; 0 assembles nothing.
    """

    def __init__(self, *, n: int = 1, assemble: int = 1 << 26) -> None:
        self.state = State.PREAMBLE
        self.finish_reasons: dict[int, str] = {}
        self.usage: dict[str, Any] | None = None
        self._n = n
        self._open: set[int] = set()
        self._room = assemble
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    @property
    def has_output(self) -> bool:
        """Whether there was any real output: a non-empty delta member but `role`, or a `finish_reason`."""
        return self.state is not State.PREAMBLE

    @property
    def done(self) -> bool:
        """Whether the stream is complete."""
        return self.state is State.DONE

    @property
    def id(self) -> str:
        """The `id` its chunks share, or ""."""
        return str(self._head.get("id") or "")

    @property
    def model(self) -> str:
        """The model that answers, by its own account."""
        return str(self._head.get("model") or "")

    def feed(self, data: bytes) -> dict[str, Any] | None:
        """Takes the data of one event and returns its chunk, or `None` for `[DONE]`.

        Raises `UpstreamGarbled` for what is no chunk, `UpstreamFailed` for an error object,
        `UpstreamTruncated` for a `[DONE]` that comes too early.
        """
        if data.strip() == DONE:
            self._step(Signal.DONE)
            return None
        try:
            chunk = _json.decode(data)
        except ValueError:
            raise UpstreamGarbled("The upstream sent an event that is not JSON.") from None
        if not isinstance(chunk, dict):
            raise UpstreamGarbled("The upstream sent an event that is not a JSON object.")
        self.feed_chunk(chunk, size=len(data))
        return chunk

    def feed_chunk(self, chunk: Chunk, *, size: int = 0) -> None:
        """Takes one chunk. *size*, its bytes, counts against what is assembled."""
        if (failure := stream_error(chunk)) is not None:
            raise failure
        self._room -= size
        if self._room > 0:
            self._assemble_head(chunk)
        if isinstance(usage := chunk.get("usage"), dict):
            self.usage = usage
        signal = Signal.NOTHING
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and self._absorb(choice):
                signal = Signal.OUTPUT
        if signal is Signal.OUTPUT and not self._open:
            signal = Signal.FINISH
        self._step(signal)

    def end(self) -> None:
        """The body ended. Raises `UpstreamTruncated` unless the stream is complete."""
        if not self.done:
            self._step(Signal.EOF if len(self.finish_reasons) >= self._n else None)

    def message(self) -> dict[str, Any] | None:
        """The `chat.completion` object the chunks add up to so far."""
        if self._room <= 0:
            return None
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": None, **_joined(choice["message"])},
                "logprobs": _joined(choice["logprobs"]) or None,
                "finish_reason": self.finish_reasons.get(index),
            }
            for index, choice in sorted(self._choices.items())
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self.usage}

    def _step(self, signal: Signal | None) -> None:
        state = TRANSITIONS[self.state].get(signal) if signal else None
        if state is None:
            raise UpstreamTruncated("The upstream's stream ended before its finish_reason.")
        self.state = state

    def _absorb(self, choice: dict[str, Any]) -> bool:
        """Notes a choice's delta; whether there was output in it."""
        index = choice.get("index")
        index = index if isinstance(index, int) else 0
        # Azure's filter chunks have no delta; a server that ignores `stream` has the whole message.
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        if self._room > 0:
            kept = self._choices.setdefault(index, {"message": {}, "logprobs": {}})
            _accumulate(kept["message"], delta)
            if isinstance(logprobs := choice.get("logprobs"), dict):
                _accumulate(kept["logprobs"], logprobs)
        finish_reason = choice.get("finish_reason")
        if isinstance(finish_reason, str) and finish_reason:
            self.finish_reasons[index] = finish_reason
            self._open.discard(index)
            return True
        if any(value for member, value in delta.items() if member != "role"):
            if index not in self.finish_reasons:
                self._open.add(index)
            return True
        return False

    def _assemble_head(self, chunk: Chunk) -> None:
        for member, value in chunk.items():
            if member not in _NOT_HEAD and value not in (None, "", 0):
                self._head.setdefault(member, value)


_NOT_HEAD = frozenset({"object", "choices", "usage", "obfuscation", "error"})


def stream_error(chunk: Chunk) -> OpenAISSEError | None:
    """The failure that an object within a stream reports, or `None` if it is a chunk.

    Next to OpenAI's `{"error": {…}}` there are bare strings, `{"detail": …}` and vLLM's `{"object": "error", …}`.
    """
    error = chunk.get("error")
    if not error and "choices" not in chunk:
        error = chunk if chunk.get("object") == "error" else chunk.get("detail")
    if not error:
        return None
    return error_from(error, cls=UpstreamFailed)


def error_from(
    error: object,
    *,
    cls: type[UpstreamRefused],
    status: int | None = None,
) -> UpstreamRefused:
    """An upstream's error object, whatever its shape, as an exception. `code` may be a number or a string."""
    members = error if isinstance(error, dict) else {"message": error}
    message = members.get("message")
    code = members.get("code")
    if status is None:
        status = code if isinstance(code, int) and 400 <= code < 600 else 502
    return cls(
        message if isinstance(message, str) and message else "The upstream reported an error.",
        status=502 if status in (401, 403) else status,
        type=_string(members.get("type")),
        code=_string(code),
        param=_string(members.get("param")),
    )


def _string(value: object) -> str | None:
    return str(value) if isinstance(value, str | int) and value != "" else None


# Assembly: deltas are added up as OpenAI's SDK does, in pieces that are joined once ----------------------------------


class _Pieces(list[str]):
    """A string in the making."""


# Sent once by OpenAI and with every delta by some others: the first value stands.
_SET_ONCE = frozenset({"role", "id", "type", "name", "index"})


def _accumulate(target: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for member, value in delta.items():
        if value is None:
            continue
        if member == "tool_calls" and isinstance(value, list):
            _accumulate_tool_calls(target.setdefault(member, []), value)
        elif member in _SET_ONCE:
            if not target.get(member):
                target[member] = value
        elif isinstance(value, str):
            _slot(target, member, _Pieces).append(value)
        elif isinstance(value, dict):
            _accumulate(_slot(target, member, dict), value)
        elif isinstance(value, list):
            _slot(target, member, list).extend(value)
        else:
            target[member] = value


def _slot(target: dict[str, Any], member: str, kind: type[Any]) -> Any:
    """The place for *member*; a server that changes its type half-way starts it anew."""
    if type(target.get(member)) is not kind:
        target[member] = kind()
    return target[member]


def _accumulate_tool_calls(calls: list[dict[str, Any]], deltas: list[Any]) -> None:
    for delta in deltas:
        if isinstance(delta, dict):
            _accumulate(_tool_call(calls, delta), {"type": "function", **delta})


def _tool_call(calls: list[dict[str, Any]], delta: dict[str, Any]) -> dict[str, Any]:
    """The call that *delta* belongs to. Ollama leaves `index` out or repeats it: then a new `id` is a new call."""
    index, call_id = delta.get("index"), delta.get("id")
    candidates = [call for call in calls if call["index"] == index] if isinstance(index, int) else calls[-1:]
    if candidates and not (call_id and candidates[-1].get("id") not in (None, "", call_id)):
        return candidates[-1]
    call: dict[str, Any] = {"index": index if isinstance(index, int) else len(calls)}
    calls.append(call)
    return call


def _joined(value: Any) -> Any:
    if isinstance(value, _Pieces):
        return "".join(value)
    if isinstance(value, dict):
        return {
            member: [_without_index(_joined(call)) for call in inner] if member == "tool_calls" else _joined(inner)
            for member, inner in value.items()
        }
    return value


def _without_index(call: dict[str, Any]) -> dict[str, Any]:
    return {member: value for member, value in call.items() if member != "index"}


def add_usage(total: Mapping[str, Any] | None, usage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The sum of two usages, member by member; an unknown one counts for nothing."""
    if total is None or usage is None:
        known = total if usage is None else usage
        return dict(known) if known is not None else None
    summed = dict(total)
    for member, value in usage.items():
        before = summed.get(member)
        if isinstance(value, Mapping):
            summed[member] = add_usage(before if isinstance(before, Mapping) else {}, value)
        elif isinstance(value, int | float) and isinstance(before, int | float):
            summed[member] = before + value
        else:
            summed.setdefault(member, value)
    return summed
