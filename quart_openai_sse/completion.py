"""One Chat Completions stream: what each chunk means, whether the stream is whole, and the message it adds up to."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from quart_openai_sse import _json
from quart_openai_sse.errors import (
    OpenAISSEError,
    UpstreamCredentials,
    UpstreamFailed,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTruncated,
)

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
        self._n = n
        self._assemble = assemble
        self.restart()

    def restart(self) -> None:
        """Forgets everything: another attempt follows."""
        self.state = State.PREAMBLE
        self.finish_reasons: dict[int, str] = {}
        self.usage: dict[str, Any] | None = None
        self._open: set[int] = set()
        self._room = self._assemble
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, _Members]] = {}

    @property
    def has_output(self) -> bool:
        """Whether there was any real output: a non-empty delta member but `role`, or a `finish_reason`."""
        return self.state is not State.PREAMBLE

    @property
    def finished(self) -> bool:
        """Whether every choice that began has its `finish_reason`."""
        return self.state in (State.FINISHED, State.DONE)

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
        """Takes the data of one event and returns its chunk, or `None` if it is `[DONE]`.

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
        index = _index(choice) or 0
        # Azure's filter chunks have no delta; a server that ignores `stream` has the whole message.
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        if self._room > 0:
            kept = self._choices.setdefault(index, {"message": _Members(), "logprobs": _Members()})
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
    code = error.get("code") if isinstance(error, dict) else None
    if code in (401, 403, "invalid_api_key"):  # about our key, and perhaps with a part of it
        return UpstreamCredentials("The upstream refused our key within its stream.")
    return error_from(error, cls=UpstreamFailed)


def error_from(
    error: object,
    *,
    cls: type[UpstreamRefused],
    status: int | None = None,
) -> UpstreamRefused:
    """An upstream's error object, whatever its shape, as an exception. `code` may be a number or a string."""
    members = error if isinstance(error, dict) else {"message": _details(error)}
    message = members.get("message")
    code = members.get("code")
    if status is None:
        status = code if isinstance(code, int) and 400 <= code < 600 else 502
    return cls(
        message if isinstance(message, str) and message else "The upstream reported an error.",
        status=status,
        type=_string(members.get("type")),
        code=_string(code),
        param=_string(members.get("param")),
    )


def _details(error: object) -> object:
    """FastAPI lists what is wrong: `[{"loc": […], "msg": …}]`."""
    if not isinstance(error, list):
        return error
    return "; ".join(each["msg"] for each in error if isinstance(each, dict) and isinstance(each.get("msg"), str))


def _string(value: object) -> str | None:
    # It goes into log lines, too.
    text = str(value) if isinstance(value, str | int) else ""
    return text if text.isprintable() and 0 < len(text) <= 100 else None


# Assembly: deltas are added up as OpenAI's SDK does, in pieces that are joined once ----------------------------------


class _Pieces(list[str]):
    """A string in the making."""


class _Members(dict[str, Any]):
    """An object in the making. What is no such thing is kept as it came, however deep it is."""


class _Calls(list[_Members]):
    """Tool calls in the making."""

    def __init__(self) -> None:
        self._latest: dict[int | None, _Members] = {}  # by index; under None the latest of all
        self._known: dict[tuple[int | None, str], _Members] = {}

    def find(self, delta: Mapping[str, Any]) -> _Members:
        """The call that *delta* belongs to. Ollama leaves `index` out or repeats it: then a new `id` is a new call."""
        index, call_id = _index(delta), _string(delta.get("id"))
        call = self._latest.get(index)
        if call_id and call is not None and call.get("id"):
            call = self._known.get((index, call_id))
        if call is None:
            call = _Members()
            self.append(call)
        self._latest[index] = self._latest[None] = call
        if call_id:
            self._known[index, call_id] = self._known[None, call_id] = call
        return call


# Sent once by OpenAI and with every delta by some others: the first value stands.
_SET_ONCE = frozenset({"role", "id", "type", "name", "index"})

_DEPTH = 16  # of the objects that are added up, far more than any API has


def _accumulate(target: _Members, delta: Mapping[str, Any], depth: int = _DEPTH) -> None:
    for member, value in delta.items():
        if value is None:
            continue
        if member in _SET_ONCE:
            if not target.get(member):
                target[member] = value
        elif isinstance(value, str):
            _slot(target, member, _Pieces).append(value)
        elif member == "tool_calls" and isinstance(value, list) and depth:
            _accumulate_calls(_slot(target, member, _Calls), value, depth - 1)
        elif isinstance(value, list):
            _slot(target, member, list).extend(value)
        elif isinstance(value, dict) and depth:
            _accumulate(_slot(target, member, _Members), value, depth - 1)
        else:
            target[member] = value


def _accumulate_calls(calls: _Calls, deltas: list[Any], depth: int) -> None:
    for delta in deltas:
        if isinstance(delta, dict):
            _accumulate(calls.find(delta), delta, depth)


def _slot(target: _Members, member: str, kind: type[Any]) -> Any:
    """The place for *member*; a server that changes its type half-way starts it anew."""
    if type(target.get(member)) is not kind:
        target[member] = kind()
    return target[member]


def _joined(value: Any) -> Any:
    if isinstance(value, _Pieces):
        return whole("".join(value))
    if isinstance(value, _Calls):
        return [_call(_joined(call)) for call in value]
    if isinstance(value, _Members):
        return {member: _joined(inner) for member, inner in value.items()}
    return value


def whole(text: str) -> str:
    """*text* with the halves of an emoji joined that two chunks held, each as a surrogate; a lone half stays one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _call(members: dict[str, Any]) -> dict[str, Any]:
    """A tool call as a message has it: of some type, and without the place it had in the stream."""
    members = {"type": "function", **members}
    members.pop("index", None)
    return members


def _index(value: Mapping[str, Any]) -> int | None:
    index = value.get("index")
    return index if type(index) is int else None  # True is an int to Python, and not to JSON


def add_usage(total: Mapping[str, Any] | None, usage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The sum of two usages, member by member; an unknown one counts for nothing."""
    if total is None or usage is None:
        known = total if usage is None else usage
        return dict(known) if known is not None else None
    return _sum(total, usage, depth=_DEPTH)


def _sum(total: Mapping[str, Any], usage: Mapping[str, Any], *, depth: int) -> dict[str, Any]:
    summed = dict(total)
    for member, value in usage.items():
        before = summed.get(member)
        if before is None:
            summed[member] = value
        elif isinstance(before, Mapping) and isinstance(value, Mapping) and depth:
            summed[member] = _sum(before, value, depth=depth - 1)
        elif _is_count(before) and _is_count(value):
            summed[member] = before + value
    return summed


def _is_count(value: object) -> bool:
    # No wider than 64 bits: an int beyond a float's range can't be added to one.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 63
