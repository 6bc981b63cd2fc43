"""An upstream that refuses is asked again where that makes sense, and its status is told."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos import refusals
from tests.chaos.app import chaos_app
from tests.chaos.statuses import STATUSES


@pytest.mark.parametrize("hundred", [4, 5])
async def test_each_status_in_every_form(hundred: int) -> None:
    """All at the same time, since most of the time they wait for a retry."""
    statuses = [status for status in STATUSES if status // 100 == hundred]
    async with chaos_app() as app:
        rows = await asyncio.gather(*(refusals.row(app, status) for status in statuses))
    seen = {(status, form): each for status, row in zip(statuses, rows, strict=True) for form, each in row.items()}
    assert {which: each.wrong for which, each in seen.items() if each.wrong} == {}
