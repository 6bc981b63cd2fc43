"""The recipes are found on their page."""

from __future__ import annotations

import pytest

from tests.chaos.recipes import PAGE, recipes


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not part of this copy")
def test_every_recipe_of_the_page_is_run() -> None:
    assert list(recipes()) == ["langgraph", "pydantic", "agents", "claude"]
    for code in recipes().values():
        compile(code, str(PAGE), "exec")
