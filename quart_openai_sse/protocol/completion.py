"""One Chat Completions stream: what each chunk means, and whether the stream is whole."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from quart_openai_sse.errors import UpstreamTruncated
from quart_openai_sse.protocol.chunks import ParsedChunk, parse_chunk


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
        chunk = parse_chunk(data)
        if chunk is None:
            return self._step(Signal.DONE)
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

    def _absorb(self, chunk: ParsedChunk) -> Signal:
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
