"""The measurement of refused libraries, with the one that is always installed."""

from __future__ import annotations

from tests.chaos.refused import CASES, REFUSALS, _by_refusal, _is_right


async def test_each_refusal_is_told_truly_and_asked_for_once() -> None:
    library = "openai, ai.transport"
    figures = _by_refusal({library: await CASES[library]()})
    assert list(figures) == [f"{library}, {way}" for way in REFUSALS]
    assert [case for case, each in figures.items() if not _is_right(case, each)] == []
    assert [each["upstream"] for each in figures.values()] == [1] * len(REFUSALS)
