"""The bytes in a shared store: batches, ends, what is known of a stream, and the messages between processes.

A newer version may add members at the end of an array and keys to a map: this one ignores them. It may also have more
kinds of entries, packings and messages: this one answers with `LogUnavailable`, or does not answer.
"""

from __future__ import annotations

import logging
import struct
import time
import zlib
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct, msgpack

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs.compact import Run
from quart_openai_sse.logs.entries import About, End, Entry, Kind

logger = logging.getLogger("quart_openai_sse")

HEADER = struct.Struct(">IIB")
"""The header of a batch: the place of its first entry, the number of its entries, and how they are packed.

Stores read the first two numbers, and nothing behind them.
"""

END = b"\xff"
"""The first byte of an end. No batch begins with it: a stream has fewer entries."""

_SILENCE = 60.0  # seconds between two log lines
_END_HEADER = struct.Struct(">cIB")  # END, the number of entries, and how it is packed
_COMPRESSED, _SEALED, _JSON, _RUNS = 1, 2, 4, 8
_UNKNOWN = 255 - (_COMPRESSED | _SEALED | _JSON | _RUNS)
# Less is not worth the time. Measured with chunks of 170 bytes, for each to encode and decode it, and of its size:
# in batches of 5: 0.4 us and 1.08, compressed 1.9 us and 0.25; of 16: 0.3 us and 1.07, compressed 0.9 us and 0.11;
# of 64: 0.2 us and 1.07, compressed 0.5 us and 0.06.
_WORTH = 1024  # bytes
_CHUNK = Kind.CHUNK
_KINDS = (Kind.CHUNK, Kind.MESSAGE, Kind.ANSWER, Kind.EVENT)  # new ones come last: their numbers are stored
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}

Cipher = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]
"""A function that seals bytes, and one that opens them."""


class _Entry(Struct, frozen=True, array_like=True, gc=False):
    data: bytes
    t: float
    usage: bool = False
    kind: int = 0
    name: str = ""


_entries = msgpack.Decoder(list[_Entry])
_runs = msgpack.Decoder(list[Run])
_about = msgpack.Decoder(About)
_end = msgpack.Decoder(End)
_end_as_json = msgspec.json.Decoder(End)


class Wire:
    """Packs and unpacks, with a *cipher* if one is given."""

    def __init__(self, cipher: Cipher | None = None) -> None:
        self._cipher = cipher
        self._silent_until = 0.0
        """When a log line may say again that something cannot be decrypted."""

    def batch(self, first: int, entries: Sequence[Entry]) -> bytes:
        """The batch of *entries*, the first of which is at the place *first*."""
        rows = [
            (each.data, each.t)
            if each.kind is _CHUNK and not each.usage
            else (each.data, each.t, each.usage, _NUMBERS[each.kind], each.name)
            for each in entries
        ]
        packing, body = self._pack(msgpack.encode(rows))
        return HEADER.pack(first, len(entries), packing) + body

    def batch_of_runs(self, first: int, runs: Sequence[Run]) -> bytes:
        """The batch of plain chunks, the first of which is at the place *first*.

        What the chunks share is in it once, which takes less time than compression, and hardly more bytes.
        """
        packing, body = self._pack(msgpack.encode(runs))
        return HEADER.pack(first, sum(len(run.pieces) for run in runs), packing | _RUNS) + body

    def read_batch(self, data: bytes) -> tuple[int, list[Entry]]:
        """The place of the first entry, and the entries. Raises `LogUnavailable` if it cannot be read."""
        try:
            first, _, packing = HEADER.unpack_from(data)
            body = self._unpack(packing, memoryview(data)[HEADER.size :])
            if packing & _RUNS:
                return first, [
                    Entry(before + piece + after, t)
                    for before, after, pieces, times in _runs.decode(body)
                    for piece, t in zip(pieces, times, strict=True)
                ]
            rows = _entries.decode(body)
            return first, [Entry(row.data, row.t, row.usage, _KINDS[row.kind], row.name) for row in rows]
        except (struct.error, zlib.error, msgspec.MsgspecError, IndexError, ValueError) as error:
            raise LogUnavailable("The store has a batch that this version cannot read.") from error

    def end(self, end: End, count: int) -> bytes:
        """The end of a stream with *count* entries."""
        try:
            form, body = 0, msgpack.encode(end)
        except OverflowError:  # an upstream may count with numbers of any size
            form, body = _JSON, msgspec.json.encode(end)
        packing, body = self._pack(body)
        return _END_HEADER.pack(END, count, packing | form) + body

    def read_end(self, data: bytes) -> tuple[End, int]:
        """The end, and the number of entries before it. Raises `LogUnavailable` if it cannot be read."""
        try:
            _, count, packing = _END_HEADER.unpack_from(data)
            decode = _end_as_json.decode if packing & _JSON else _end.decode
            return decode(self._unpack(packing, memoryview(data)[_END_HEADER.size :])), count
        except (struct.error, zlib.error, msgspec.MsgspecError) as error:
            raise LogUnavailable("The store has an end that this version cannot read.") from error

    def about(self, about: About) -> bytes:
        """What is known of a stream."""
        return self.blob(msgpack.encode(about))

    def read_about(self, data: bytes) -> About:
        """What is known of a stream. Raises `LogUnavailable` if it cannot be read."""
        try:
            return _about.decode(self.read_blob(data))
        except msgspec.MsgspecError as error:
            raise LogUnavailable("The store has a stream that this version cannot read.") from error

    def blob(self, data: bytes) -> bytes:
        """Any bytes."""
        packing, body = self._pack(data)
        return bytes([packing]) + body

    def read_blob(self, data: bytes) -> bytes:
        """The bytes of a blob. Raises `LogUnavailable` if it cannot be read."""
        try:
            return bytes(self._unpack(data[0], memoryview(data)[1:]))
        except (zlib.error, IndexError) as error:
            raise LogUnavailable("The store has bytes that this version cannot read.") from error

    def _pack(self, body: bytes) -> tuple[int, bytes]:
        packing = 0
        if len(body) >= _WORTH and len(compressed := zlib.compress(body, 1)) < len(body) * 0.8:
            packing, body = _COMPRESSED, compressed
        if self._cipher is not None:
            packing, body = packing | _SEALED, self._cipher[0](body)
        return packing, body

    def _unpack(self, packing: int, body: memoryview) -> bytes | memoryview:
        if packing & _UNKNOWN:
            raise LogUnavailable("The store has bytes of a newer version, which this one cannot read.")
        unsealed = self._unseal(bytes(body)) if packing & _SEALED else body
        return zlib.decompress(unsealed) if packing & _COMPRESSED else unsealed

    def _unseal(self, body: bytes) -> bytes:
        reason, cause = "The store has encrypted streams, and this process has no log_cipher.", None
        if self._cipher is not None:
            try:
                return self._cipher[1](body)
            except Exception as error:  # of the app's own function
                reason, cause = "The log_cipher cannot decrypt what is in the store.", error
        if (now := time.monotonic()) >= self._silent_until:
            self._silent_until = now + _SILENCE
            logger.warning("%s Its streams cannot be read in this process.", reason)
        raise LogUnavailable(reason) from cause


# Messages between processes -------------------------------------------------------------------------------------------


class Joined(Struct, frozen=True, array_like=True, tag=1):
    """A process reads a stream."""

    key: str
    process: str


class Left(Struct, frozen=True, array_like=True, tag=2):
    """A process no longer reads a stream."""

    key: str
    process: str


class Stop(Struct, frozen=True, array_like=True, tag=3):
    """A stream is to be stopped."""

    key: str
    reason: str


class Flush(Struct, frozen=True, array_like=True, tag=4):
    """*process* asks the writer's process to write what it has of a stream, and to answer."""

    key: str
    process: str
    question: int


class Who(Struct, frozen=True, array_like=True, tag=5):
    """*process* asks all processes who has a stream. If *stop* is not empty, the stream is to be stopped with it."""

    key: str
    process: str
    question: int
    stop: str


class Answer(Struct, frozen=True, array_like=True, tag=6):
    """The answer to a question: 0 for no, `STORED` or `PASSING`."""

    question: int
    found: int


class Erased(Struct, frozen=True, array_like=True, tag=7):
    """Streams were erased from the store. Every process drops what it has of them, and answers *process*."""

    keys: tuple[str, ...]
    process: str
    question: int


class Forgotten(Struct, frozen=True, array_like=True, tag=8):
    """Every process stops the passing streams of *owner*, and answers *process*."""

    owner: str
    process: str
    question: int
    reason: str


STORED, PASSING = 1, 2

Message = Joined | Left | Stop | Flush | Who | Answer | Erased | Forgotten

encode_message = msgpack.Encoder().encode
_message: msgpack.Decoder[Message] = msgpack.Decoder(Message)


def read_message(data: bytes) -> Message | None:
    """A message; `None` if this version does not know it."""
    try:
        return _message.decode(data)
    except msgspec.MsgspecError:
        return None
