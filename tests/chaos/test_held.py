"""The measurements of several builds measure what they say."""

from __future__ import annotations

import pytest

from tests.chaos import held
from tests.chaos.builds import Figures, measure, staged, table
from tests.chaos.memory import MIB, large_objects


def test_a_large_text_is_counted_wherever_it_is_held_until_it_is_freed() -> None:
    before = large_objects()
    tracked = [{"messages": [{"content": "x" * MIB}]}, bytearray(MIB), "x" * (MIB - 1)]
    assert large_objects() - before == 2
    tracked.clear()
    assert large_objects() == before


def test_a_table_has_a_group_of_columns_for_each_build() -> None:
    old: dict[str, Figures] = {"one": {"KiB": 3104.25, "answers": "40 x 400"}, "another": {"error": "not over in 60 s"}}
    new: dict[str, Figures] = {"one": {"KiB": 0.2, "answers": "40 x 400"}, "another": {"KiB": 12, "answers": None}}
    assert list(table("case", ("answers", "KiB"), [("old", old), ("new", new)])) == [
        "         old" + " " * 26 + "new",
        "case                answers      KiB   answers  KiB",
        "one                40 x 400  3,104.2  40 x 400  0.2",
        "another  (not over in 60 s)                  -   12",
    ]


@pytest.mark.slow
async def test_a_refused_request_keeps_none_of_its_prompt() -> None:
    with staged([]) as [build]:
        figures = await measure("held", ["model not allowed, kept"], build)
    [found] = figures.values()
    assert (found["answers"], found["prompts"]) == ("40 x 404 model_not_found", 0)
    assert found[held.KEPT] < held.AT_MOST
