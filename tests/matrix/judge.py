"""From what the clients said to a table and a verdict. No process, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.matrix.plan import Known, Row

Cell = tuple[Row, str]


@dataclass
class Outcomes:
    """What was to be checked, and what came of it: a problem, or "" where all was well."""

    expected: dict[Cell, tuple[str, ...]] = field(default_factory=dict)
    problems: dict[tuple[Row, str, str], str] = field(default_factory=dict)

    def expect(self, row: Row, column: str, checks: Sequence[str]) -> None:
        """Adds a cell: *checks* of *column* against *row*."""
        self.expected[row, column] = tuple(checks)

    def note(self, row: Row, column: str, check: str, problem: str) -> None:
        """What came of one check."""
        self.problems[row, column, check] = problem

    def missing(self, rows: Iterable[Row], column: str, why: str) -> None:
        """Whatever *column* has not said about *rows* is a failure, because of *why*."""
        for row in rows:
            for check in self.expected[row, column]:
                self.problems.setdefault((row, column, check), why)


@dataclass(frozen=True)
class Verdict:
    """The cells' texts, the footnotes by their letters, and the two counts."""

    cells: Mapping[Cell, str]
    notes: Mapping[str, str]
    passed: int
    failed: int

    @property
    def line(self) -> str:
        """The last line of all."""
        return f"{self.passed} passed, {self.failed} failed"


def judge(outcomes: Outcomes, known: Sequence[Known]) -> Verdict:
    """Counts the checks. What fails for a *known* reason is none of the failures; a reason that is stale is one."""
    cells, letters = {}, _Letters()
    passed = failed = 0
    stale = dict.fromkeys(known, 0)
    for (row, column), checks in outcomes.expected.items():
        good, marks = 0, []
        for check in checks:
            reason = next((each for each in known if each.covers(row, column, check)), None)
            problem = outcomes.problems.get((row, column, check), "it was not run")
            if reason is not None:
                stale[reason] += not problem
            if not problem:
                good += 1
            elif reason is not None:
                marks.append(letters.of(f"{check}: known: {reason.why}"))
            else:
                failed += 1
                marks.append(letters.of(f"{check}: {problem}"))
        passed += good
        cells[row, column] = _cell(good, len(checks), marks)
    for reason, count in stale.items():
        if count:
            failed += 1
            letters.of(f"{reason.check}: stale: it passed {count} times, although “{reason.why}” is said to be known")
    return Verdict(cells, letters.notes, passed, failed)


def table(verdict: Verdict, rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """The lines of the table, with the footnotes below it."""
    head = ["", *columns]
    body = [[str(row), *(verdict.cells.get((row, column), "") for column in columns)] for row in rows]
    widths = [max(len(line[place]) for line in [head, *body]) for place in range(len(head))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in [head, *body]]
    return [line.rstrip() for line in lines] + [f"({letter}) {note}" for letter, note in verdict.notes.items()]


def _cell(good: int, number: int, marks: Sequence[str]) -> str:
    seen = "".join(f"({letter})" for letter in dict.fromkeys(marks))
    return f"{good}/{number} {seen}".rstrip()


class _Letters:
    """A letter for each footnote: a, b … z, aa, ab …"""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    def of(self, note: str) -> str:
        for letter, known in self.notes.items():
            if known == note:
                return letter
        number, letter = len(self.notes), ""
        while number >= 0:
            letter = chr(ord("a") + number % 26) + letter
            number = number // 26 - 1
        self.notes[letter] = note
        return letter
