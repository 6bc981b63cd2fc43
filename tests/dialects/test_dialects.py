"""The samples of each kind, through the product in all ways; and the harness's own reading of them."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from tests.dialects.judge import differences, expected_of
from tests.dialects.oracle import read
from tests.dialects.run import judge
from tests.dialects.sample import KINDS
from tests.dialects.samples import SAMPLES

SHOWN = 8
"""Differences of one sample that a failure names."""


@pytest.mark.parametrize("kind", KINDS)
async def test_every_way_reads_the_samples_of_a_kind_alike(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "quart_openai_sse")  # hundreds of these streams fail on purpose
    found = await judge([sample for sample in SAMPLES if sample.kind == kind])
    lines = [f"{name}: {problem}" for name, problems in found.items() for problem in problems[:SHOWN]]
    assert not lines, "\n".join(["", *lines])


def test_the_harness_reads_its_samples_as_they_were_written() -> None:
    for sample in SAMPLES:
        assert list(differences(vars(read(sample.frames)), expected_of(sample))) == [], sample.name


def test_each_row_of_the_page_names_its_samples() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/dialects.md").read_text("utf-8")
    tables = [table for table in page.split("\n\n") if table.partition("\n")[0].endswith("| sample |")]
    rows = [line.split("|")[-2] for table in tables for line in table.splitlines()[2:]]
    named = [re.findall(r"`([^`]+)`", cell) for cell in rows]
    assert len(tables) == 3
    assert all(named)
    assert {name for names in named for name in names} <= {sample.name for sample in SAMPLES}


def test_each_kind_has_two_samples_at_least() -> None:
    assert all(sum(sample.kind == kind for sample in SAMPLES) >= 2 for kind in KINDS)
