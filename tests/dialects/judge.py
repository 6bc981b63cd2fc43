"""Compares what one way shows of a sample with what is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.dialects.oracle import Reading, arguments_of
from tests.dialects.sample import SECRET, Sample
from tests.dialects.wire import Seen, contains

BRIEF = 160
"""Characters of a value that are printed."""


def expected_of(sample: Sample, *, redacted: str = "") -> Reading:
    """The reading of a whole sample. With *redacted*, this stands in the place of the secret."""

    def told(text: str) -> str:
        return text.replace(SECRET, redacted) if redacted else text

    return Reading(
        text=told(sample.text),
        reasoning=told(sample.reasoning),
        refusal=told(sample.refusal),
        calls=[(name, told(arguments)) for name, arguments in sample.calls],
        usage=sample.usage,
        outcome=sample.outcome,
        finish_reason=sample.finish_reason,
        details=dict(sample.details),
    )


def differences(seen: Seen, expected: Reading, *, only: tuple[str, ...] = ()) -> Iterator[str]:
    """What is wrong in *seen*, where it shows anything; *only* these members are compared, if given."""
    for member, right in vars(expected).items():
        if member in seen and (not only or member in only):
            shown = seen[member]
            if not _same(member, shown, right, expected):
                yield f"{member} is {brief(shown)}, not {brief(right)}"


def kept(sample: Sample, message: Any, details: Any) -> Iterator[str]:
    """What the message lacks of that which it must hold."""
    for member, right in sample.message.items():
        shown = (message or {}).get(member)
        if shown != right:
            yield f"message.{member} is {brief(shown)}, not {brief(right)}"
    for value in sample.keeps:
        if not contains([message, details], value):
            yield f"the message {brief(message)} has lost {brief(value)}"


def brief(value: Any) -> str:
    """A value, shortened to be printed."""
    shown = repr(value)
    return shown if len(shown) <= BRIEF else f"{shown[: BRIEF - 20]} … {shown[-19:]}"


def _same(member: str, shown: Any, right: Any, expected: Reading) -> bool:
    if isinstance(shown, str) and shown.startswith("(StreamEnd has no"):
        return not right
    match member:
        case "calls":
            return [(name, arguments_of(text)) for name, text in shown] == [
                (name, arguments_of(text)) for name, text in right
            ] and all(isinstance(text, str) for _, text in shown)
        case "details":
            return all(shown.get(name) == value for name, value in right.items())
        case "finish_reason":
            return right is None or expected.outcome != "completed" or shown == right
        case "usage" if shown is not None and right is not None and len(shown) > len(right):
            return bool(shown == (*right, sum(right)))
    return bool(shown == right)
