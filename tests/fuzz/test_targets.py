"""The fuzzers' targets hold for their seeds and for a few inputs more; the many are tried outside CI."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name in SEEDS for seed in SEEDS[name]])
def test_a_seed_is_no_finding(name: str, seed: bytes) -> None:
    TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_near_a_seed_is_no_finding(name: str) -> None:
    @settings(deadline=None, max_examples=100, database=None)
    @given(st.sampled_from(SEEDS[name]), st.integers(0, 300), st.integers(0, 20), st.binary(max_size=20))
    def try_out(seed: bytes, place: int, length: int, inserted: bytes) -> None:
        place %= len(seed) + 1
        TARGETS[name](seed[:place] + inserted + seed[place + length :])

    try_out()
