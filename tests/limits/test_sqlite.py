"""Counts in an SQLite file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quart_openai_sse.limits.sqlite import SQLiteCounts
from tests.limits.counts_contract import NewCounts, SharedCountsContract


class TestCounts(SharedCountsContract):
    @pytest.fixture
    def new_counts(self, tmp_path: Path) -> NewCounts:
        def create(**options: Any) -> SQLiteCounts:
            return SQLiteCounts(tmp_path / "counts.db", **options)

        return create
