"""What was seen of each way through a proxy, beside what is expected. No process, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Seen:
    """One row of the table."""

    same_origin: str
    """The status of a POST by cookie, from a page of the site, in a browser that sends `Sec-Fetch-Site`."""
    origin_only: str
    """The same in a browser that does not; "403, says why" if the message names both hosts and the proxy."""
    foreign: str
    """The same from a page of another site, in both kinds of browsers."""
    events: str
    """"at once" if the first event arrives before the last is written, else "held"."""
    end: str
    """"complete" if the stream has its text, its finish reason and its `[DONE]`."""
    left: str
    """With what the app learns that the client of a stream has left: "at once", "next events" or "never"."""
    left_before: str
    """The same before the head of an answer in one piece, of which there are no events: "at once" or "never"."""
    killed: str
    """What a client gets of a stream whose app is killed: "incomplete", an error, or "complete"."""
    down: str
    """The status of a request when there is no app."""


COLUMNS = tuple(each.name for each in fields(Seen))


def differences(way: str, seen: Seen, expected: Seen) -> list[str]:
    """A line for each column that is not as expected."""
    pairs = ((name, getattr(seen, name), getattr(expected, name)) for name in COLUMNS)
    return [f"{way}: {name}: {was}, expected: {should}" for name, was, should in pairs if was != should]


def table(rows: Mapping[str, Seen]) -> Iterator[str]:
    """The lines of the table."""
    cells = [["", *COLUMNS], *([way, *(getattr(seen, name) for name in COLUMNS)] for way, seen in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(_padded(line, widths)).rstrip()


def _padded(line: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    return (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
