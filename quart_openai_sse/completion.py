"""One Chat Completions stream: what each chunk means, and whether the stream is whole."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec

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

    __hash__ = object.__hash__  # Enum's own is slow, and these are looked up with every chunk

    NOTHING = "empty deltas, roles"
    USAGE = "usage alone"
    OUTPUT = "the first or further output of a choice"
    FINISH = "a finish_reason, and no choice is left open"
    DONE = "[DONE]"
    EOF = "the body ended with every expected choice finished"


class State(Enum):
    """Where a stream stands."""

    __hash__ = object.__hash__

    PREAMBLE = "no output yet: a failure can still be a status, or a retry"
    STREAMING = "a choice has begun and is not finished"
    FINISHED = "every choice that began is finished"
    DONE = "complete"


_OUTPUT = Signal.OUTPUT  # an Enum's members take long to look up

TRANSITIONS: Mapping[State, Mapping[Signal, State]] = {
    State.PREAMBLE: {
        Signal.NOTHING: State.PREAMBLE,
        Signal.USAGE: State.PREAMBLE,
        Signal.OUTPUT: State.STREAMING,
        Signal.FINISH: State.FINISHED,
    },
    State.STREAMING: {
        Signal.NOTHING: State.STREAMING,
        Signal.USAGE: State.STREAMING,
        Signal.OUTPUT: State.STREAMING,
        Signal.FINISH: State.FINISHED,
    },
    State.FINISHED: {
        Signal.NOTHING: State.FINISHED,
        Signal.USAGE: State.FINISHED,
        Signal.OUTPUT: State.STREAMING,  # choices may come one after another
        Signal.FINISH: State.FINISHED,
        Signal.DONE: State.DONE,
        Signal.EOF: State.DONE,
    },
    State.DONE: {},
}
"""A signal that is missing from its row means that the stream was cut: [DONE] or the body's end came too early."""


class Completion:
    """Follows one stream of *n* choices, chunk by chunk."""

    def __init__(self, *, n: int = 1) -> None:
        self._n = n
        self.restart()

    def restart(self) -> None:
        """Forgets everything: another attempt follows."""
        self.state = State.PREAMBLE
        self.has_output = False
        """Whether there was any real output: a non-empty delta member but `role`, or a `finish_reason`."""
        self.done = False
        """Whether the stream is complete."""
        self.finish_reasons: dict[int, str] = {}
        self.usage: dict[str, Any] | None = None
        self._open: set[int] = set()

    @property
    def finished(self) -> bool:
        """Whether every choice that began has its `finish_reason`."""
        return self.state in (State.FINISHED, State.DONE)

    def feed(self, data: bytes) -> Signal:
        """Takes the data of one event, and says what it means.

        Raises `UpstreamGarbled` for what is no chunk, `UpstreamFailed` for an error object,
        `UpstreamTruncated` for a `[DONE]` that comes too early.
        """
        try:
            chunk = _decode_chunk(data)
            odd = chunk.error or not (data.isascii() or data.decode())  # the decoder looks at no text that it skips
        except (ValueError, RecursionError):
            odd = True
        if odd:
            read = _decode_odd(data)
            if read is None:
                return self._step(Signal.DONE)
            chunk = read
        if len(chunk.choices) == 1 and chunk.usage is None:
            [choice] = chunk.choices
            # As nearly all chunks are: a choice that has begun goes on, which changes nothing.
            if choice.delta and choice.delta.get("content") and not choice.finish_reason and choice.index in self._open:
                return _OUTPUT
        return self._step(Signal.NOTHING if self.done else self._absorb(chunk))

    def end(self) -> None:
        """The body ended. Raises `UpstreamTruncated` unless the stream is complete."""
        if not self.done:
            self._step(Signal.EOF if len(self.finish_reasons) >= self._n else None)

    def _step(self, signal: Signal | None) -> Signal:
        state = TRANSITIONS[self.state].get(signal) if signal else None
        if signal is None or state is None:
            raise UpstreamTruncated("The upstream's stream ended before its finish_reason.")
        if state is not self.state:
            self.state = state
            self.has_output = state is not State.PREAMBLE
            self.done = state is State.DONE
        return signal

    def _absorb(self, chunk: _Chunk) -> Signal:
        if chunk.usage is not None:
            self.usage = chunk.usage
        signal = Signal.NOTHING if chunk.choices or not chunk.usage else Signal.USAGE
        for choice in chunk.choices:
            if choice.finish_reason:
                self.finish_reasons[choice.index] = choice.finish_reason
                self._open.discard(choice.index)
                signal = Signal.OUTPUT
            elif choice.delta and _says_something(choice.delta):
                if choice.index not in self.finish_reasons:
                    self._open.add(choice.index)
                signal = Signal.OUTPUT
        return Signal.FINISH if signal is Signal.OUTPUT and not self._open else signal


def _says_something(delta: dict[str, Any]) -> bool:
    for member, value in delta.items():  # noqa: SIM110 (any() takes three times as long, for each chunk)
        if value and member != "role":
            return True
    return False


# What is read of a chunk --------------------------------------------------------------------------------------------


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    # Azure's filter chunks have none; a server that ignores `stream` has the whole message.
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice]
    usage: dict[str, Any] | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def _decode_odd(data: bytes) -> _Chunk | None:
    """A chunk that has not the types that OpenAI documents, as far as it can be understood; `None` for `[DONE]`."""
    if data.strip() == DONE:
        return None
    try:
        chunk = _json.decode(data)
    except ValueError:
        raise UpstreamGarbled("The upstream sent an event that is not JSON.") from None
    if not isinstance(chunk, dict):
        raise UpstreamGarbled("The upstream sent an event that is not a JSON object.")
    if (failure := stream_error(chunk)) is not None:
        raise failure
    choices, usage = chunk.get("choices"), chunk.get("usage")
    listed = [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []
    return _Chunk([_choice(each) for each in listed], usage if isinstance(usage, dict) else None)


def decode_chunk(data: bytes) -> dict[str, Any]:
    """The whole of a chunk that was fed. Raises `UpstreamGarbled` for numbers that nothing here can hold."""
    try:
        chunk: dict[str, Any] = _json.decode(data)
    except ValueError:
        raise UpstreamGarbled("The upstream sent a chunk that cannot be read.") from None
    return chunk


def _choice(choice: dict[str, Any]) -> _Choice:
    delta, finish_reason = choice.get("delta"), choice.get("finish_reason")
    return _Choice(
        find_index(choice) or 0,
        delta if isinstance(delta, dict) else None,
        finish_reason if isinstance(finish_reason, str) else None,
    )


def find_index(value: Mapping[str, Any]) -> int | None:
    """The place of a choice, or of a tool call, where it says so."""
    index = value.get("index")
    return index if type(index) is int else None  # True is an int to Python, and not to JSON


# What is wrong with it ----------------------------------------------------------------------------------------------


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
