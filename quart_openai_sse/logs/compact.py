"""Entries in little memory: the common beginning and end of successive chunks are stored once."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import structs

from quart_openai_sse.logs.entries import Entry, Kind

_CHUNK = Kind.CHUNK
_WORTH = 32  # bytes that two entries must share
_MOST = 4096  # bytes that are compared at either end
_MOST_FRAMES = 256  # of one stream


class Run(NamedTuple):
    """Successive plain chunks, with what they share at either end apart."""

    before: bytes
    after: bytes
    pieces: Sequence[bytes]
    times: Sequence[float]


class CompactEntries:
    """Entries that are added at the end and read in slices, each as it was.

    The chunks of a stream repeat its id, its model and their own shape: they share a beginning and an end, which are
    kept once for as long as the chunks go on like that.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._times = array("d")
        self._ends = array("Q")
        """Where each entry would end if all were written in one row."""
        self._marks: dict[int, Entry] = {}
        """The few entries that are not plain chunks, without their data."""
        self._marked: list[int] = []
        self._frames = [(b"", b"")]
        """What stands around the pieces, from each of these places on."""
        self._places = [0]
        self._latest = b""

    def __len__(self) -> int:
        return len(self._pieces)

    def extend(self, entries: Iterable[Entry]) -> None:
        """Adds *entries*."""
        before, after = self._frames[-1]
        end = self._ends[-1] if self._ends else 0
        for entry in entries:
            data = entry.data
            size = len(data)
            around = len(before) + len(after)
            if not (around and size >= around and data.startswith(before) and data.endswith(after)):
                before, after = self._change_frame(data)
            if entry.usage or entry.kind is not _CHUNK:
                self._marked.append(len(self._pieces))
                self._marks[len(self._pieces)] = structs.replace(entry, data=b"")
            self._pieces.append(data[len(before) : size - len(after)])
            self._times.append(entry.t)
            end += size
            self._ends.append(end)
            self._latest = data

    def size_behind(self, place: int) -> int:
        """The bytes of the entries behind *place*."""
        return self._ends[-1] - (self._ends[place - 1] if place else 0) if self._ends else 0

    def batch(self, start: int, size: int) -> list[Entry]:
        """The entries from place *start* on, until they have *size* bytes or there are no more."""
        stop = self._stop(start, size)
        if self._has_marks(start, stop):
            return [self._entry(place) for place in range(start, stop)]
        entries: list[Entry] = []
        while start < stop:
            frame, until = self._frame(start, stop)
            before, after = frame
            kept = zip(self._pieces[start:until], self._times[start:until], strict=True)
            entries += [Entry(before + piece + after, t) for piece, t in kept]
            start = until
        return entries

    def runs(self, start: int, size: int) -> list[Run] | None:
        """The same entries as they are kept; `None` if there are others than plain chunks among them."""
        stop = self._stop(start, size)
        if self._has_marks(start, stop):
            return None
        runs: list[Run] = []
        while start < stop:
            (before, after), until = self._frame(start, stop)
            pieces, times = self._pieces[start:until], self._times[start:until].tolist()
            if len(runs) == 1 and len(runs[0].pieces) == 1 and not runs[0].before + runs[0].after:
                whole = runs[0].pieces[0]  # what a stream begins with: it had nothing to share with
                if len(whole) >= len(before) + len(after) and whole.startswith(before) and whole.endswith(after):
                    pieces = [whole[len(before) : len(whole) - len(after)], *pieces]
                    times = [*runs.pop().times, *times]
            runs.append(Run(before, after, pieces, times))
            start = until
        return runs

    def _stop(self, start: int, size: int) -> int:
        """The place before which entries from *start* on have *size* bytes."""
        if start >= len(self._pieces):
            return start
        begins = self._ends[start - 1] if start else 0
        return min(bisect_left(self._ends, begins + size) + 1, len(self._pieces))

    def _has_marks(self, start: int, stop: int) -> bool:
        return bisect_left(self._marked, start) < bisect_left(self._marked, stop)

    def _entry(self, place: int) -> Entry:
        (before, after), _ = self._frame(place, place)
        data = before + self._pieces[place] + after
        mark = self._marks.get(place)
        return Entry(data, self._times[place]) if mark is None else structs.replace(mark, data=data)

    def _frame(self, start: int, stop: int) -> tuple[tuple[bytes, bytes], int]:
        """The frame of the entry at *start*, and the place up to which the next entries share it, at most *stop*."""
        number = bisect_right(self._places, start) - 1
        last = number + 1 == len(self._places)
        return self._frames[number], stop if last else min(stop, self._places[number + 1])

    def _change_frame(self, data: bytes) -> tuple[bytes, bytes]:
        """The frame of *data*: what it shares with the entry before it, if that is worth it."""
        latest = self._latest
        before = _same(latest, data)
        after = _same(latest[before:][: -_MOST - 1 : -1], data[before:][: -_MOST - 1 : -1])
        worth = before + after >= _WORTH and len(self._frames) < _MOST_FRAMES
        frame = (data[:before], data[len(data) - after :]) if worth else (b"", b"")
        if frame != self._frames[-1]:
            self._frames.append(frame)
            self._places.append(len(self._pieces))
        return frame


def _same(one: bytes, other: bytes) -> int:
    """How many bytes are the same at the beginning of both, as far as that is looked at."""
    low, high = 0, min(len(one), len(other), _MOST)
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
