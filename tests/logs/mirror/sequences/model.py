"""What a stream that two processes share must do, as plain values: the operations, and the state after each.

Two processes, 0 and 1, have a log each. They start the same stream, as two requests with one Idempotency-Key do, append
to it and end it, and each has a client that reads it. A sequence is a tuple of operations such as `("create", 0)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

Operation = tuple[str, int]
"""What is done, and in which process. `expire` is done by time, so its process is always 0."""
Sequence = tuple[Operation, ...]

OPERATIONS: tuple[Operation, ...] = (
    *((name, process) for name in ("create", "attach", "append", "close", "stop", "lose") for process in (0, 1)),
    ("expire", 0),
)
NOT_FOUND, EXPIRED = "StreamNotFound", "StreamExpired"


@dataclass(frozen=True)
class Client:
    """A client that reads the stream in one process."""

    stream: int = 0
    """The stream that it attached to; 0: none."""
    place: int = 0
    """The number of entries that it had when it attached last."""
    at_end: bool = False
    """Whether it had the end by then."""


@dataclass(frozen=True)
class Producer:
    """The last writer that a process got."""

    stream: int
    stopped: str = ""
    """The reason with which it was told to stop."""
    lost: bool = False
    """Whether it was told that its process was taken for dead."""


@dataclass(frozen=True)
class Model:
    """The state of a key. A new one is unknown."""

    stream: int = 0
    """The number of the key's stream: a stream that failed without an entry is replaced. 0: unknown."""
    writer: int = 0
    """The process that writes it."""
    entries: tuple[str, ...] = ()
    end: str = ""
    """"", "completed" or "lost"."""
    expired: bool = False
    stop: str = ""
    producers: tuple[Producer | None, Producer | None] = (None, None)
    clients: tuple[Client, Client] = (Client(), Client())
    streams: int = 0
    """The number of streams that the key has had."""

    @property
    def refusal(self) -> str:
        """The name of the error for a reader, or ""."""
        return NOT_FOUND if not self.stream else EXPIRED if self.expired else ""

    @property
    def held(self) -> bool:
        """Whether `create` returns `None`."""
        return bool(self.stream) and not (self.end == "lost" and not self.entries)

    def runs_in(self, process: int) -> bool:
        """Whether the writer of *process* is the one of the running stream."""
        producer = self.producers[process]
        return not self.end and self.writer == process and producer is not None and producer.stream == self.stream

    def allows(self, operation: Operation) -> bool:
        """Whether *operation* can be done. What cannot have any effect is left out."""
        name, process = operation
        if name in ("append", "close"):
            return self.producers[process] is not None
        if name == "lose":
            return bool(self.stream) and self.runs_in(process)
        if name == "expire":
            return bool(self.stream) and not self.expired
        return True

    def after(self, operation: Operation) -> Model:
        """The state after *operation*."""
        name, process = operation
        after: Model = getattr(self, f"_{name}")(process)
        return after

    def _create(self, process: int) -> Model:
        if self.held:
            return self
        stream = self.streams + 1
        producers = _with(self.producers, process, Producer(stream))
        return Model(stream=stream, writer=process, producers=producers, clients=self.clients, streams=stream)

    def _attach(self, process: int) -> Model:
        if self.refusal:
            return self
        client = self.clients[process]
        if client.stream != self.stream:
            client = Client(self.stream)
        else:  # it has had everything by now
            client = Client(self.stream, len(self.entries), bool(self.end))
        return replace(self, clients=_with(self.clients, process, client))

    def _append(self, process: int) -> Model:
        if not self.runs_in(process):
            return self
        return replace(self, entries=(*self.entries, f"{self.stream}.{len(self.entries) + 1}"))

    def _close(self, process: int) -> Model:
        return replace(self, end="completed") if self.runs_in(process) else self

    def _stop(self, process: int) -> Model:
        if not self.stream or self.end or self.stop:
            return self
        producer = self.producers[self.writer]
        assert producer is not None
        reason = f"by {process}"
        stopped = replace(producer, stopped=reason)
        return replace(self, stop=reason, producers=_with(self.producers, self.writer, stopped))

    def _lose(self, process: int) -> Model:
        producer = self.producers[process]
        assert producer is not None
        return replace(self, end="lost", producers=_with(self.producers, process, replace(producer, lost=True)))

    def _expire(self, process: int) -> Model:
        if not self.end:
            return self
        if not self.held:  # it leaves no tombstone
            return replace(self, stream=0, entries=(), end="", stop="")
        return replace(self, expired=True)


def sequences(length: int) -> Iterator[Sequence]:
    """All sequences of up to *length* operations, shorter ones first.

    Of two that differ in nothing but the numbers of the processes there is one.
    """
    level: list[tuple[Sequence, Model]] = [((), Model())]
    for _ in range(length):
        level = [
            ((*sequence, operation), model.after(operation))
            for sequence, model in level
            for operation in OPERATIONS
            if model.allows(operation) and (sequence or operation[1] == 0)
        ]
        yield from (sequence for sequence, _ in level)


def _with(values: tuple, process: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (value, values[1]) if process == 0 else (values[0], value)
