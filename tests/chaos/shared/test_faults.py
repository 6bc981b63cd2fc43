"""The faults of a shared store that are quickly over; `.ci/long shared-faults` has all of them."""

from __future__ import annotations

import pytest

from tests.chaos.shared.beginnings import BEGINNINGS, begun
from tests.chaos.shared.starts import UNUSABLE, refused
from tests.chaos.shared.table import FAULTS, play
from tests.machine import redis_path

pytestmark = pytest.mark.slow
QUICK = [name for name, fault in FAULTS.items() if fault.is_quick]


@pytest.fixture(autouse=True)
def redis() -> None:
    """The program."""
    redis_path()


@pytest.mark.parametrize("name", QUICK)
async def test_a_fault_is_seen_as_it_must_be(name: str) -> None:
    scene = await play(name, slack=10)  # the machine has other work
    assert scene.wrong == [], scene.seen


@pytest.mark.parametrize("name", BEGINNINGS)
async def test_workers_begin_beside_others(name: str) -> None:
    seen, wrong = await begun(name)
    assert wrong == [], seen


@pytest.mark.parametrize("name", UNUSABLE)
async def test_a_store_that_can_never_be_used_is_refused_in_a_sentence(name: str) -> None:
    said, wrong = await refused(name)
    assert wrong == [], said
