"""An upstream that refuses is asked again where that makes sense, and its status is told."""

from __future__ import annotations

import pytest

from tests.chaos import refusals
from tests.chaos.app import chaos_app
from tests.chaos.statuses import STATUSES


@pytest.mark.parametrize("status", STATUSES)
async def test_a_status_in_every_form(status: int) -> None:
    async with chaos_app() as app:
        seen = await refusals.row(app, status)
    assert {form: each.wrong for form, each in seen.items() if each.wrong} == {}
