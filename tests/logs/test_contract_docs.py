"""The documentation's example of a log of one's own, in a project of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.logs import sqlite_log
from tests.test_docs import ROOT, blocks
from tests.test_pytest_plugin import Pytest, asyncio_mode, run_pytest

__all__ = ["run_pytest"]


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not part of this copy")
def test_the_example_of_the_documentation_runs(run_pytest: Pytest) -> None:
    (example,) = (
        block
        for block in blocks(ROOT / "docs/discussion/architecture.md")
        if block.how == "run: script test_sqlite_log.py"
    )
    log = Path(sqlite_log.__file__).read_text("utf-8")
    printed = run_pytest(*asyncio_mode("strict"), sqlite_log=log, test_sqlite_log=example.code)
    for missing in ("expire", "lose"):
        assert f"`{missing}` is not defined" in printed
    assert "`max_bytes`" not in printed
    assert "`unreachable`" not in printed
