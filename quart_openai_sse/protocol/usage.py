"""The usage that upstreams report: where it stands, what is known after several reports, and the sum of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

Usage = Mapping[str, Any]
"""A `usage` object of OpenAI's API."""

_DEPTH = 16  # levels of details, far more than any API has


def find_usage(members: Mapping[str, Any]) -> dict[str, Any] | None:
    """The usage in a chunk or an answer: at its top level, in Groq's `x_groq`, or in one of its choices (Moonshot)."""
    usage: dict[str, Any] | None = None
    for reported in usage_reports(members.get("usage"), members.get("x_groq"), members.get("choices")):
        usage = update_usage(usage, reported)
    return usage


def usage_reports(usage: Any, groq: Any, choices: Any) -> list[Usage]:
    """The reports of usage in a chunk with these members, the one that counts most as the last."""
    places = [groq, *(choices if isinstance(choices, list) else ()), {"usage": usage}]
    found = [place.get("usage") for place in places if isinstance(place, Mapping)]
    return [each for each in found if isinstance(each, Mapping) and each]


def update_usage(known: Usage | None, reported: Usage) -> dict[str, Any]:
    """The usage of one answer after one more report: the last one counts, for each number.

    A report of 0 does not replace a number: servers send zeros after the real report, and in chunks in between. If no
    total is reported, it is the sum of the other two.
    """
    usage = dict(reported) if known is None else _updated(known, reported, depth=_DEPTH)
    if not reported.get("total_tokens"):
        counts = [usage.get(prompt) or usage.get(own) for prompt, own in _PARTS]
        if all(map(_is_count, counts)):
            usage["total_tokens"] = sum(counts)
    return usage


_PARTS = (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))


def add_usage(total: Usage | None, usage: Usage | None) -> dict[str, Any] | None:
    """The sum of two `usage` objects, member by member, details included; `None` adds nothing."""
    if total is None or usage is None:
        known = total if usage is None else usage
        return dict(known) if known is not None else None
    return _sum(total, usage, depth=_DEPTH)


def count_tokens(usage: Usage | None) -> tuple[int, int, int]:
    """The tokens of a usage: in all, of the prompt, of the answer; 0 for what is not reported.

    All are at least those of the prompt and the answer, whatever total is reported.
    """
    if usage is None:
        return 0, 0, 0
    prompt, answer = (_count(usage.get(name)) or _count(usage.get(own)) for name, own in _PARTS)
    return max(_count(usage.get("total_tokens")), prompt + answer), prompt, answer


def _updated(known: Usage, reported: Usage, *, depth: int) -> dict[str, Any]:
    updated = dict(known)
    for member, value in reported.items():
        before = updated.get(member)
        if isinstance(before, Mapping) and isinstance(value, Mapping) and depth:
            updated[member] = _updated(before, value, depth=depth - 1)
        elif before is None or (value is not None and not (_is_count(value) and value == 0)):
            updated[member] = value
    return updated


def _sum(total: Usage, usage: Usage, *, depth: int) -> dict[str, Any]:
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


def _count(value: object) -> int:
    return max(0, int(value)) if _is_count(value) else 0


def _is_count(value: object) -> TypeGuard[int | float]:
    # At most 64 bits: an int beyond a float's range cannot be added to a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 63
