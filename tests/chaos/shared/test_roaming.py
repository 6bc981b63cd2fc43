"""A few clients that roam for some seconds; `.ci/long shared-chaos` has 200 for ten minutes."""

from __future__ import annotations

import pytest

from tests.chaos.shared.roaming import run
from tests.chaos.shared.roaming_faults import STORES
from tests.machine import redis_path

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("store", STORES)
async def test_every_text_is_the_upstreams_or_honestly_ended(store: str) -> None:
    redis_path()
    lines: list[str] = []
    assert await run(lines.append, minutes=0.25, streams=30, store=store, seed=15), "".join(lines)
