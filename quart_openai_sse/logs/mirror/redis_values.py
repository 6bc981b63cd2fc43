"""Keys and channels in Redis, and the values in what scripts answer."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from quart_openai_sse.logs.mirror import State, Write

VERSION = 1
"""The version of keys and scripts, which is part of each key."""


class Keys:
    """The keys below *prefix* and the channels of *database*. Keys with the same braces share a cluster's slot."""

    def __init__(self, prefix: str, database: int) -> None:
        self._prefix = f"{prefix}:{VERSION}:"
        self._channels = f"{self._prefix}{database}:"  # channels are not of a database
        self.leases = self._key("processes", "leases")
        self.check = self._key("processes", "check")
        self.everybody = encoded(f"{self._channels}processes")
        self.streams = encoded(f"{self._channels}s/")
        """What the channels of streams begin with."""
        self.processes = encoded(f"{self._channels}process/")
        """What the channels of processes begin with."""

    def stream(self, key: str) -> Sequence[bytes]:
        """A stream's state, its batches, what its hooks need."""
        base = encoded(f"{self._prefix}{{s/{key}}}:")
        return base + b"state", base + b"batches", base + b"hooks"

    def streams_of(self, process: str) -> bytes:
        """The set of the streams of a process."""
        return self._key(f"process/{process}", "streams")

    def owner(self, owner: str) -> bytes:
        """The index of an owner's streams."""
        return self._key(f"owner/{owner}", "streams")

    def channel(self, key: str) -> bytes:
        """What is written to a stream."""
        return self.streams + encoded(key)

    def process(self, process: str) -> bytes:
        """Messages to a process."""
        return self.processes + process.encode()

    def _key(self, tag: str, part: str) -> bytes:
        return encoded(f"{self._prefix}{{{tag}}}:{part}")


class Found(NamedTuple):
    """A state as a script answers it, with what `State` has no member for."""

    state: State
    created: float


def found(reply: Any) -> Found | None:
    """The state in the reply of a script."""
    if reply is None:
        return None
    writer, digest, count, end, decided, stop, attempt, readers, kept, ended_ago, left_ago, created, about = reply
    name = writer.decode()
    state = State(
        writer=name,
        digest=text(digest),
        count=count,
        about=about if kept else b"",
        end=end,
        decided=decided,
        stop=text(stop),
        attempt=attempt,
        readers=readers_of(readers, name),
        kept=bool(kept),
        ended_ago=ended_ago / 1000,
        left_ago=left_ago / 1000,
    )
    return Found(state, float(created))


def text(value: bytes) -> str:
    """The text that `encoded` has made bytes of."""
    return value.decode("utf-8", "surrogatepass")


def encoded(value: str) -> bytes:
    """A text as bytes, whatever is in it."""
    return value.encode("utf-8", "surrogatepass")


def indexed(owner: str, key: str) -> bytes:
    """A stream in the index of its owner. Most keys begin with their owner, and short members take little memory."""
    return encoded(f"+{key[len(owner) :]}" if key.startswith(owner) else f"={key}")


def key_in_index(owner: str, member: bytes) -> str:
    """The key of the stream in the index of *owner*."""
    name = text(member)
    return owner + name[1:] if name.startswith("+") else name[1:]


_NUMBERS, _LENGTH = struct.Struct(">IIQQB"), struct.Struct(">I")


def packed(write: Write, channel: bytes) -> bytes:
    """A write as the script takes it."""
    kept = milliseconds(write.retention)
    known = kept + milliseconds(write.tombstone)
    parts = [_NUMBERS.pack(write.place, write.count, kept, known, write.holds_key)]
    for value in (encoded(write.writer), write.batch, write.decided, write.end, write.request, channel):
        parts += _LENGTH.pack(len(value)), value
    return b"".join(parts)


def member(writer: str, key: str) -> bytes:
    """A stream in the set of its writer's process. The number tells it from an earlier one with the same key."""
    return encoded(f"{writer.partition('.')[2]} {key}")


def key_of(member: bytes) -> str:
    """The key of the stream in a process's set."""
    return text(member.partition(b" ")[2])


def process_of(writer: str) -> str:
    """The process of a writer."""
    return writer.partition(".")[0]


def readers_of(readers: bytes, writer: str) -> tuple[str, ...]:
    """The processes that read a stream, without that of its writer."""
    process = process_of(writer)
    return tuple(reader for reader in readers.decode().split() if reader != process)


def names(replies: Sequence[bytes]) -> frozenset[str]:
    """The processes in a reply."""
    return frozenset(name.decode() for name in replies)


def milliseconds(seconds: float) -> int:
    """What Redis is told of *seconds*."""
    return max(0, round(seconds * 1000))
